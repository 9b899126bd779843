// A room as a graph: peers on a circle, by their ids, so that everybody keeps their place; links as
// chords, so that none runs through a peer that it is not of. Up to twelve peers have room for words;
// of more, the names stand outwards like the rays of a sun, where they never overlap.

import { keyed, named, roving, setAttribute, setClass, setText, svg, el } from "./dom.js";
import { pathName, short, stateName } from "./format.js";
import { dash, rttOf, standingWords, tally, tallyText, tone, touches, troubled } from "./model.js";

const FEW = 12; // peers that have room for words
const FLASHES = 40; // links that may flash at once
const NEAR = { mouse: 7, pen: 10, touch: 16 }; // pixels around a link that count as on it
const LEGIBLE = 8.5; // pixels of the smallest letters
const BENT = 0.5; // how far from the centre a chord of many is drawn, as a share of its middle's distance
const SMALL = "11px";

const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const canvas = document.createElement("canvas").getContext("2d");

/** As much of the text as has room, with an ellipsis where it is not all. */
function fit(text, width, font) {
  canvas.font = font;
  if (canvas.measureText(text).width <= width) return text;
  const letters = [...text];
  let low = 0, high = letters.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (canvas.measureText(`${letters.slice(0, middle).join("")}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return `${letters.slice(0, low).join("").trimEnd()}…`;
}

/** Where everything is, for peers of these names in so much room. */
function places(names, width, height, family) {
  const n = names.length;
  const few = n <= FEW;
  const cx = width / 2, cy = height / 2;
  const side = Math.min(width, height);
  canvas.font = `12px ${family}`;
  const longest = Math.max(0, ...names.map((name) => canvas.measureText(name).width));
  const margin = few ? Math.min(Math.max(width * 0.17, 74), 150) : Math.min(longest + 26, Math.max(side * 0.2, 56));
  const ry = Math.max(few ? Math.min(cy - 58, 230) : side / 2 - margin, 20);
  const rx = few ? Math.min(Math.max(cx - margin, 20), ry * 1.45) : ry;
  const spacing = (2 * Math.PI * Math.min(rx, ry)) / Math.max(n, 1);
  const start = n === 2 ? Math.PI : -Math.PI / 2;
  const at = Array.from({ length: n }, (_, i) => {
    const angle = start + (2 * Math.PI * i) / n;
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    return n === 1 ? { x: cx, y: cy, cos: 0, sin: 1, angle: Math.PI / 2 } : { x: cx + rx * cos, y: cy + ry * sin, cos, sin, angle };
  });
  // A triangle has its middle below that of its circle.
  const [top, bottom] = [Math.min(...at.map(({ y }) => y)), Math.max(...at.map(({ y }) => y))];
  if (few) for (const place of at) place.y += cy - (top + bottom) / 2;
  const font = few ? 13 : Math.min(spacing * 0.82, 12);
  return { few, cx, cy, rx, ry, margin, font, at, radius: few ? (n <= 6 ? 12 : 10) : Math.min(Math.max(spacing * 0.3, 2.5), 7) };
}

export class Graph {
  #box;
  #under;
  #svg;
  #tip;
  #links = svg("g", { class: "links" });
  #troubles = svg("g", { class: "links" });
  #flashes = svg("g", { class: "front" });
  #front = svg("g", { class: "front" });
  #nodes = svg("g", { class: "nodes" });
  #marks = { chosen: svg("path", { class: "link chosen" }), pointed: svg("path", { class: "link pointed" }) };
  #onPeer;
  #onLink;
  #drawn = new Map(); // by the key of the link: { element, look, line, link }
  #room = null;
  #selection = {};
  #places = null;
  #at = new Map(); // peer id -> place
  #pointed = {}; // { peer } or { link }
  #reachable;
  #size = [0, 0];

  constructor(box, { onPeer, onLink }) {
    this.#box = box;
    // Two, as what moves is drawn again each time, and must not take a thousand links with it.
    const [under, over] = box.querySelectorAll("svg");
    this.#under = under;
    this.#svg = over;
    this.#tip = box.querySelector(".tip");
    this.#onPeer = onPeer;
    this.#onLink = onLink;
    this.#front.append(this.#marks.chosen, this.#marks.pointed);
    under.append(this.#links, this.#troubles);
    over.append(this.#flashes, this.#front, this.#nodes);
    // Not of an SVG element: Chromium lets Tab stop at those that listen for the focus.
    this.#reachable = roving(box, ".node");
    new ResizeObserver(([entry]) => {
      const { width, height } = entry.contentRect;
      if (width === this.#size[0] && height === this.#size[1]) return;
      this.#size = [width, height];
      this.#draw();
    }).observe(box);
    this.#listen();
  }

  update(room, selection) {
    const another = this.#room?.id !== room?.id;
    this.#room = room;
    this.#selection = selection;
    if (another) this.#clear();
    if (this.#pointed.peer && !room?.byPeer.has(this.#pointed.peer)) this.#point({});
    this.#draw(!another);
    if (this.#pointed.peer || this.#pointed.link) this.#point(this.#pointed);
  }

  #clear() {
    for (const { element } of this.#drawn.values()) element.remove();
    this.#drawn.clear();
    this.#flashes.replaceChildren();
    this.#point({});
  }

  #draw(flash = false) {
    const room = this.#room;
    const [width, height] = this.#size;
    if (!width || !height) return; // the table is shown instead
    const members = room?.members ?? [];
    const family = getComputedStyle(this.#svg).fontFamily;
    const where = (this.#places = places(members.map(({ peerId }) => room.name(peerId)), width, height, family));
    this.#at = new Map(members.map((member, i) => [member.peerId, where.at[i]]));
    for (const each of [this.#under, this.#svg]) setAttribute(each, "viewBox", `0 0 ${width} ${height}`);
    setClass(this.#box, "many", !where.few);
    this.#drawLinks(flash);
    this.#drawNodes(members, family);
    this.#emphasize();
  }

  // --- links -----------------------------------------------------------------------------------

  #drawLinks(flash) {
    const links = this.#room?.links ?? [];
    let flashes = flash ? FLASHES : 0;
    const gone = new Set(this.#drawn.keys());
    for (const link of links) {
      const trouble = troubled(link);
      const line = this.#line(link);
      if (line === null) continue;
      const { key } = link;
      const look = `link ${tone(link)} ${dash(link)}${trouble ? " trouble" : ""}`;
      gone.delete(key);
      let drawn = this.#drawn.get(key);
      if (!drawn) {
        const element = svg("path", { class: look, d: line });
        drawn = { element, look, line, link };
        this.#drawn.set(key, drawn);
        (trouble ? this.#troubles : this.#links).append(element);
        continue;
      }
      drawn.link = link;
      if (drawn.line !== line) drawn.element.setAttribute("d", (drawn.line = line));
      if (drawn.look === look) continue;
      drawn.element.setAttribute("class", (drawn.look = look));
      const layer = trouble ? this.#troubles : this.#links;
      if (drawn.element.parentNode !== layer) layer.append(drawn.element);
      if (flashes-- > 0) this.#flash(look, line);
    }
    for (const key of gone) {
      this.#drawn.get(key).element.remove();
      this.#drawn.delete(key);
    }
    setClass(this.#box, "busy", links.length > 20);
    setClass(this.#box, "dense", links.length > 150);
  }

  #flash(look, line) {
    if (STILL.matches) return;
    const flash = svg("path", { class: `${look} changed`, d: line });
    flash.addEventListener("animationend", () => flash.remove());
    this.#flashes.append(flash);
    if (this.#flashes.children.length > FLASHES) this.#flashes.firstChild.remove();
  }

  #line(link) {
    const a = this.#at.get(link.a), b = this.#at.get(link.b);
    if (!a || !b) return null;
    const n = (value) => value.toFixed(1);
    if (this.#places.few) return `M${n(a.x)} ${n(a.y)}L${n(b.x)} ${n(b.y)}`;
    const c = this.#control(a, b);
    return `M${n(a.x)} ${n(a.y)}Q${n(c.x)} ${n(c.y)} ${n(b.x)} ${n(b.y)}`;
  }

  #control(a, b) {
    const { cx, cy } = this.#places;
    return { x: cx + ((a.x + b.x) / 2 - cx) * BENT, y: cy + ((a.y + b.y) / 2 - cy) * BENT };
  }

  /** The link that is nearest to a point, if one is near enough. */
  #linkAt(x, y, near) {
    let best = null, least = near;
    for (const { link } of this.#drawn.values()) {
      const a = this.#at.get(link.a), b = this.#at.get(link.b);
      if (!a || !b) continue;
      const distance = this.#distance(a, b, x, y) - (troubled(link) ? 2 : 0); // where they cross
      if (distance < least) [best, least] = [link, distance];
    }
    return best;
  }

  #distance(a, b, x, y) {
    const c = this.#places.few ? null : this.#control(a, b);
    const steps = c ? 14 : 1;
    let least = Infinity, from = a;
    for (let i = 1; i <= steps; i++) {
      const t = i / steps, u = 1 - t;
      const to = c ? { x: u * u * a.x + 2 * u * t * c.x + t * t * b.x, y: u * u * a.y + 2 * u * t * c.y + t * t * b.y } : b;
      const dx = to.x - from.x, dy = to.y - from.y;
      const along = Math.max(0, Math.min(1, ((x - from.x) * dx + (y - from.y) * dy) / (dx * dx + dy * dy || 1)));
      least = Math.min(least, Math.hypot(x - from.x - along * dx, y - from.y - along * dy));
      from = to;
    }
    return least;
  }

  // --- peers -----------------------------------------------------------------------------------

  #drawNodes(members, family) {
    keyed(
      this.#nodes,
      members,
      (member) => member.peerId,
      (member) => {
        const node = svg("g", { class: "node", role: "button", tabindex: -1 });
        node.append(svg("circle", { class: "ring" }), svg("circle", { class: "dot" }), svg("text", { class: "label" }), svg("text", { class: "sub" }));
        node.peerId = member.peerId;
        return node;
      },
      (node, member) => this.#drawNode(node, member, family),
    );
    this.#reachable();
  }

  #drawNode(node, member, family) {
    const { few, radius, font, margin } = this.#places;
    const at = this.#at.get(member.peerId);
    const room = this.#room;
    const standing = room.standing(member);
    const name = room.name(member.peerId);
    const counts = tally(room.linksOf.get(member.peerId));
    const text = tallyText(counts);
    const chosen = this.#selection.peer === member.peerId;
    setAttribute(node, "class", `node ${standing}${chosen ? " chosen" : ""}${!few && font < LEGIBLE ? " crowded" : ""}`);
    setAttribute(node, "transform", `translate(${at.x.toFixed(1)} ${at.y.toFixed(1)})`);
    const [words] = standingWords(room, member);
    setAttribute(node, "aria-label", `${name}: ${words}${text && `, ${text}`}`);
    setAttribute(node, "aria-pressed", chosen);
    const [ring, dot, label, sub] = node.children;
    setAttribute(ring, "r", radius + (few ? 5 : 3));
    setAttribute(dot, "r", radius);
    const size = few ? 13 : Math.max(font, LEGIBLE);
    setAttribute(label, "font-size", size.toFixed(1));
    if (few) {
      // Beside it on the left and on the right, above and below at the top and at the bottom.
      const beside = Math.abs(at.cos) > 0.3;
      const away = radius + 10;
      const x = beside ? Math.sign(at.cos) * away : 0;
      const y = beside ? -1 : at.sin > 0 ? away + 10 : -away - 14;
      const space = beside ? Math.max(this.#size[0] / 2 - Math.abs(at.x - this.#size[0] / 2) - away - 6, 40) : margin * 1.5;
      const anchor = beside ? (at.cos > 0 ? "start" : "end") : "middle";
      for (const [words, dy] of [[label, 0], [sub, 15]]) {
        setAttribute(words, "transform", `translate(${x.toFixed(1)} ${(y + dy).toFixed(1)})`);
        setAttribute(words, "text-anchor", anchor);
      }
      setText(label, fit(name, space, `600 ${size}px ${family}`));
      // All of it, or only what matters, or nothing: half of it would say something else.
      const choices = standing === "away" ? ["away"] : [text, counts.bad ? `${counts.bad} down` : counts.relay ? `${counts.relay} relay` : ""];
      canvas.font = `${SMALL} ${family}`;
      setText(sub, choices.find((words) => canvas.measureText(words).width <= space) ?? "");
    } else {
      const left = at.cos < -1e-9;
      const degrees = (at.angle * 180) / Math.PI;
      setAttribute(label, "transform", `rotate(${(left ? degrees + 180 : degrees).toFixed(2)}) translate(${left ? -radius - 7 : radius + 7} ${(size * 0.35).toFixed(1)})`);
      setAttribute(label, "text-anchor", left ? "end" : "start");
      setText(label, fit(name, margin - radius - 12, `${size}px ${family}`));
      setText(sub, "");
    }
  }

  /** The peer that is within a few pixels of a point. */
  #peerAt(x, y) {
    if (!this.#places) return undefined;
    const near = Math.min(this.#places.radius + 8, this.#places.radius * 2.5);
    for (const [peer, at] of this.#at) if (Math.hypot(at.x - x, at.y - y) < near) return peer;
    return undefined;
  }

  // --- what is pointed at ----------------------------------------------------------------------

  #listen() {
    const point = (event) => {
      const box = this.#svg.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const peer = event.target.closest?.(".node")?.peerId ?? this.#peerAt(x, y);
      const link = peer === undefined ? this.#linkAt(x, y, NEAR[event.pointerType] ?? NEAR.mouse) : null;
      this.#point(peer !== undefined ? { peer } : { link }, x, y);
    };
    this.#svg.addEventListener("pointermove", point);
    this.#svg.addEventListener("pointerleave", () => this.#point({}));
    this.#svg.addEventListener("click", (event) => {
      if (!this.#room) return;
      point(event);
      const { peer, link } = this.#pointed;
      if (link) this.#onLink(link.a, link.b);
      else this.#onPeer(peer ?? null);
    });
    this.#box.addEventListener("keydown", (event) => {
      const node = event.target.closest(".node");
      if (!node || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      this.#onPeer(node.peerId);
    });
    this.#box.addEventListener("focusin", (event) => {
      const node = event.target.closest(".node");
      if (node?.matches(":focus-visible")) this.#point({ peer: node.peerId });
    });
    this.#box.addEventListener("focusout", () => this.#point({}));
  }

  /** Points at `{ peer }`, `{ link }` or nothing. */
  #point(at, x = null, y = null) {
    this.#pointed = at;
    // The link may have changed, or be gone.
    if (at.link) at.link = this.#drawn.get(at.link.key)?.link ?? null;
    this.#emphasize();
    this.#tell(at, x, y);
  }

  /** Whose links stand out. */
  #hot() {
    const peer = this.#pointed.peer ?? this.#selection.peer;
    return this.#room?.byPeer.has(peer) ? peer : null;
  }

  #emphasize() {
    const hot = this.#hot();
    setClass(this.#box, "hot", hot !== null);
    setAttribute(this.#svg, "data-pointing", this.#pointed.link || this.#pointed.peer !== undefined ? "yes" : null);
    const near = new Set();
    for (const { element, link } of this.#drawn.values()) {
      const on = hot !== null && touches(link, hot);
      setClass(element, "near", on);
      if (on) near.add(link.a).add(link.b);
    }
    for (const node of this.#nodes.children) {
      setClass(node, "hot", node.peerId === hot);
      setClass(node, "near", hot === null || node.peerId === hot || near.has(node.peerId));
    }
    const chosen = this.#selection.link;
    this.#mark("chosen", chosen ? this.#room?.link(...chosen) : null);
    this.#mark("pointed", this.#pointed.link);
  }

  #mark(which, link) {
    const line = link ? this.#line(link) : null;
    setAttribute(this.#marks[which], "d", line ?? "");
    setAttribute(this.#marks[which], "class", `link ${which} ${link ? `${tone(link)} ${dash(link)}` : ""}`);
  }

  #tell({ peer, link }, x, y) {
    const member = peer !== undefined ? this.#room?.byPeer.get(peer) : undefined;
    this.#tip.hidden = !member && !link;
    if (this.#tip.hidden) return;
    if (link) {
      const rtt = rttOf(link);
      const words = [link.heard ? stateName(link.state) : "not known now", pathName(link.path), ...(rtt === null ? [] : [short(rtt)])];
      this.#tip.replaceChildren(
        el("strong", {}, named(this.#room.name(link.a)), " ↔ ", named(this.#room.name(link.b))),
        el("span", {}, words.join(" · ")),
      );
    } else {
      const links = this.#room.linksOf.get(peer);
      const words = tallyText(tally(links)) || "no links reported";
      this.#tip.replaceChildren(el("strong", {}, named(this.#room.name(peer))), el("span", {}, member.presence === "away" ? `away · ${words}` : words));
      if (x === null) ({ x, y } = this.#at.get(peer) ?? { x: 0, y: 0 });
    }
    if (x === null) return; // it stays where it is
    const { offsetWidth: width, offsetHeight: height } = this.#tip;
    this.#tip.style.left = `${Math.max(4, Math.min(x + 14, this.#size[0] - width - 4))}px`;
    this.#tip.style.top = `${Math.max(4, y + 18 + height > this.#size[1] ? y - height - 12 : y + 18)}px`;
  }
}

const SAMPLES = [
  ["direct", "connected", "direct"],
  ["turn", "connected", "over TURN"],
  ["relay", "connected", "over the relay"],
  ["idle", "waiting", "connecting"],
  ["bad", "disconnected", "disconnected"],
  ["bad", "failed", "failed"],
];

const PEERS = [
  ["bad", "mostly down"],
  ["away", "away"],
];

/** What the lines and the peers mean. */
export function drawLegend(list) {
  const item = (width, shape, words) => {
    const sample = svg("svg", { width, height: 12, viewBox: `0 0 ${width} 12`, "aria-hidden": "true" });
    sample.append(shape);
    list.append(el("li", {}, sample, words));
  };
  for (const [colour, line, words] of SAMPLES) item(30, svg("path", { d: "M1 6H29", class: `link ${colour} ${line}` }), words);
  for (const [standing, words] of PEERS) item(12, svg("circle", { class: `peer ${standing}`, cx: 6, cy: 6, r: 4.5 }), words);
}
