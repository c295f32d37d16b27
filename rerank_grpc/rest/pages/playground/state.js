// What the page remembers until it is left.

// `token` is the one that was typed to its end; `kept` what was typed before an example took its place.
// `refusal` is what the panel has written beside the token.
export const state = { token: "", file: undefined, models: [], kept: undefined, run: undefined, refusal: "" };
