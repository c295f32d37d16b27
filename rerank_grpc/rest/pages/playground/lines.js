// Draws a line between the two places of each document that both rankings have. A row is one unit high.

import { makeSvg } from "./dom.js";

const WIDTH = 100;

export class Lines {
  constructor(svg) {
    this.svg = svg;
    this.paths = new Map();
  }

  clear() {
    this.paths.clear();
    this.svg.replaceChildren();
  }

  draw(left, right) {
    const height = Math.max(left.length, right.length, 1);
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    this.svg.style.setProperty("--rows", height);
    const places = new Map(right.map(({ index }, rank) => [index, rank]));
    const drawn = new Set();
    left.forEach(({ index }, rank) => {
      if (!places.has(index)) return;
      drawn.add(index);
      this.#draw(index, rank, places.get(index));
    });
    for (const [index, path] of this.paths) {
      if (drawn.has(index)) continue;
      path.remove();
      this.paths.delete(index);
    }
  }

  /** Sets off the line of one document from the others. */
  highlight(index, on) {
    const path = this.paths.get(index);
    path?.classList.toggle("lit", on);
    if (on && path) this.svg.append(path);
  }

  #draw(index, from, to) {
    let path = this.paths.get(index);
    if (!path) {
      path = makeSvg("path");
      path.dataset.index = index;
      this.paths.set(index, path);
      this.svg.append(path);
    }
    const [first, last, middle] = [from + 0.5, to + 0.5, WIDTH / 2];
    path.setAttribute("d", `M0 ${first}C${middle} ${first} ${middle} ${last} ${WIDTH} ${last}`);
    const direction = to < from ? "up" : to > from ? "down" : "same";
    for (const each of ["up", "down", "same"]) path.classList.toggle(each, each === direction);
  }
}

/** Compares two orders: how many of the best `most` both have, and Kendall's tau over the documents of both. */
export function agreement(left, right, most) {
  const total = Math.min(most, left.length, right.length);
  const best = new Set(right.slice(0, total).map(({ index }) => index));
  const count = left.slice(0, total).filter(({ index }) => best.has(index)).length;
  const places = new Map(right.map(({ index }, rank) => [index, rank]));
  const order = left.map(({ index }) => places.get(index)).filter((place) => place !== undefined);
  let sum = 0;
  for (let i = 0; i < order.length; i++) {
    for (let j = i + 1; j < order.length; j++) sum += order[i] < order[j] ? 1 : -1;
  }
  const pairs = (order.length * (order.length - 1)) / 2;
  return { count, total, tau: pairs ? sum / pairs : undefined };
}
