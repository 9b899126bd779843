// The browser's peer of a mesh: see docs/browser.md.

export * from "./client/codec.js";
