// Cuts texts for display. The service counts Unicode code points; JavaScript's texts are UTF-16.

/** Finds the place in UTF-16 of a code point. */
export function utf16Offset(text, codePoints) {
  let offset = 0;
  for (let left = codePoints; left > 0 && offset < text.length; left--) {
    offset += text.codePointAt(offset) > 0xffff ? 2 : 1;
  }
  return offset;
}

/** Splits a text into what stands before the span, in it, and after it. */
export function around(text, span) {
  if (!span) return { before: text, marked: "", after: "" };
  const begin = utf16Offset(text, span.start ?? 0);
  const end = utf16Offset(text, span.end ?? 0);
  return { before: text.slice(0, begin), marked: text.slice(begin, end), after: text.slice(end) };
}

/** Cuts a text to about `most` characters, from `led` before its span on. */
export function excerpt(text, span, { most, led }) {
  const { before, marked, after } = around(text, span);
  if (!marked) return { before: head(before, most), marked: "", after: "" };
  return { before: tail(before, led), marked: head(marked, most), after: head(after, Math.max(0, most - marked.length)) };
}

const isHalf = (text, at) => at > 0 && at < text.length && text.codePointAt(at - 1) > 0xffff;

function head(text, most) {
  if (text.length <= most) return text;
  return `${text.slice(0, isHalf(text, most) ? most - 1 : most).trimEnd()}…`;
}

function tail(text, most) {
  if (text.length <= most) return text;
  const begin = text.length - most;
  return `…${text.slice(isHalf(text, begin) ? begin + 1 : begin).trimStart()}`;
}
