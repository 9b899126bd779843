// Who is here, how it stands with each, and how data flows.

import { byId, el, keyed, setAttribute, setClass, setText } from "../common/dom.js";
import { counted, pathName, short } from "../common/format.js";
import { icon } from "./icons.js";
import { avatar, isBot, nameOf, showAvatar } from "./names.js";

const MOVING = new Set(["new", "connecting", "disconnected"]);

const SELF = { joined: "direct", reconnecting: "relay", closed: "bad" }; // the colours of our own state

/** A peer's state in a word; while it is being connected, how far ICE is. */
export function stateOf(peer) {
  if (peer.state !== "connecting") return peer.state;
  return peer.iceState === "connected" || peer.iceState === "new" ? "connecting" : peer.iceState;
}

/** The class that has the colour of it. */
export function toneOfState(peer) {
  if (peer.state === "connected") return peer.path ?? "direct";
  return peer.state === "failed" || peer.state === "disconnected" ? "bad" : "idle";
}

export class People {
  #sendFile;
  #list = byId("peers");

  /** `sendFile(peer)` is called when somebody is to have a file. */
  constructor(sendFile) {
    this.#sendFile = sendFile;
    const open = (is) => {
      setClass(document.body, "people-open", is);
      setAttribute(byId("show-people"), "aria-expanded", String(is));
      byId(is ? "hide-people" : "show-people").focus();
    };
    byId("show-people").addEventListener("click", () => open(true));
    byId("hide-people").addEventListener("click", () => open(false));
    byId("people").addEventListener("keydown", (event) => {
      if (event.key === "Escape" && document.body.classList.contains("people-open")) open(false);
    });
  }

  /** `self`: {id, name, state}; `peers`: all others. */
  show(self, peers) {
    const others = [...peers].sort((a, b) => nameOf(a).localeCompare(nameOf(b)) || (a.id < b.id ? -1 : 1));
    setText(byId("people-count"), self ? String(others.length + 1) : "");
    setText(byId("people-short"), String(others.length + (self ? 1 : 0)));
    setAttribute(byId("people-short"), "data-none", self ? null : "");
    setAttribute(byId("show-people"), "aria-label", `${counted(others.length + (self ? 1 : 0), "person", "people")} here`);
    const rows = [...(self ? [{ self: true, peer: self }] : []), ...others.map((peer) => ({ self: false, peer }))];
    keyed(this.#list, rows, (row) => `${row.self} ${row.peer.id} ${row.peer.incarnation ?? ""}`, (row) => this.#create(row), showRow);
  }

  #create({ self, peer }) {
    const name = el("p", { className: "called" }, el("bdi", { className: "name" }), el("small"));
    const how = el("p", { className: "how" }, el("span", { className: "dot" }), el("span", { className: "words" }));
    const row = el("li", { className: "peer" }, avatar(peer), el("div", {}, name, how));
    if (!self) {
      const button = el("button", { type: "button" }, icon("attach"));
      button.addEventListener("click", () => this.#sendFile(peer));
      row.append(button);
    }
    return row;
  }
}

function showRow(row, { self, peer }) {
  const name = row.querySelector("bdi");
  const words = row.querySelector(".words");
  setText(name, nameOf(peer));
  setText(row.querySelector("small"), self ? " you" : isBot(peer) ? " bot" : "");
  setAttribute(row, "title", peer.id);
  showAvatar(row.querySelector(".avatar"), peer);
  if (self) {
    setAttribute(row.querySelector(".dot"), "class", `dot ${SELF[peer.state] ?? "idle"}${peer.state === "joined" ? "" : " moving"}`);
    setText(words, peer.state);
    return;
  }
  setAttribute(row.querySelector("button"), "aria-label", `Send a file to ${nameOf(peer)}`);
  setAttribute(row.querySelector("button"), "title", "Send a file");
  setAttribute(row.querySelector(".dot"), "class", `dot ${toneOfState(peer)}${MOVING.has(peer.state) ? " moving" : ""}`);
  setAttribute(row, "data-state", stateOf(peer));
  setAttribute(row, "data-path", peer.path);
  const path = peer.path === null ? "" : pathName(peer.path);
  const rest = [peer.rtt === null ? "" : short(peer.rtt)].filter(Boolean);
  const text = [stateOf(peer), path, ...rest].filter(Boolean).join(" · ");
  if (words.textContent === text) return;
  const mark = path ? [" · ", el("span", { className: `path ${peer.path}` }, path)] : [];
  words.replaceChildren(stateOf(peer), ...mark, ...rest.map((each) => ` · ${each}`));
}
