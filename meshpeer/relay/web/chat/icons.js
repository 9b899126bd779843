// The page's few pictures, 20 by 20.

import { svg } from "../common/dom.js";

const PATHS = {
  send: ["M3.5 10h12", "M10.5 4.5 16 10l-5.5 5.5"],
  attach: ["M15.5 9.5 9.6 15.4a3.6 3.6 0 0 1-5.1-5.1l6.6-6.6a2.4 2.4 0 0 1 3.4 3.4l-6.5 6.5a1.2 1.2 0 0 1-1.7-1.7l5.6-5.6"],
  file: ["M5 2.8h6l4 4v10.4H5z", "M11 2.8v4h4"],
  sending: ["M10 5v5l3 2", "M10 2.5a7.5 7.5 0 1 0 0 15 7.5 7.5 0 0 0 0-15"],
  sent: ["m4.5 10.5 4 4 7.5-9"],
  delivered: ["m1 10.5 4 4 7.5-9", "m9.5 13.2 1.3 1.3L18.5 5.5"],
  failed: ["M10 4v7.5", "M10 15.5v.1"],
};

/** An icon without a name: what it stands for is said beside it. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, ...PATHS[name].map((d) => svg("path", { d })));
}
