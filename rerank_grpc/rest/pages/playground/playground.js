// The server that the page came from, also below a proxy's path.
export const SERVER = new URL("../", import.meta.url);
document.documentElement.dataset.server = SERVER.href;
