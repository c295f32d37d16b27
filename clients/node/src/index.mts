// The same build as require() gets, so that a class of errors exists once in a process (docs/adr/138).
export * from "./index.js";
