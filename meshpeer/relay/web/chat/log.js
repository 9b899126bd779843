// The conversation: messages, notices, and whatever else stands among them. The latest thousand stay,
// and what somebody can still do something with.

import { byId, el, setAttribute, setHidden, setText } from "../common/dom.js";
import { minute, time } from "../common/format.js";
import { keep, recall } from "../common/storage.js";
import { icon } from "./icons.js";
import { avatar, nameOf, pathMark, toneOf } from "./names.js";

const MAX_ENTRIES = 1000;
const MAX_KEPT = 200; // messages that a reload brings back
const MAX_KEPT_SIZE = 200_000; // characters
const WRITE_AFTER = 500; // milliseconds: a thousand messages a second are one write
const TOGETHER = 180; // seconds within which messages of one person stand together
const NEAR_END = 60; // pixels
const now = () => Date.now() / 1000;

/** The states of a message to one peer, the worst first. */
const STATES = ["failed", "sending", "sent", "delivered"];
const STATE_WORDS = { sending: "on its way", sent: "sent", delivered: "delivered", failed: "not delivered" };
const NOT_KNOWN = "not known to have arrived"; // who could tell went with the page before

export class Log {
  #room;
  #scroller = byId("log");
  #live = byId("live"); // what is read out as it comes
  #entries = byId("entries");
  #latest = byId("latest");
  #last = { who: null, at: 0 }; // of whom the latest message is
  #kept = [];
  #writing = 0; // the timer to it
  #follows = true; // the latest is kept in sight
  #top = 0; // where the last scrolling led
  #unread = 0;
  #unseen = 0;
  #title = document.title;

  constructor(room) {
    this.#room = room;
    this.#scroller.addEventListener("scroll", () => this.#look(), { passive: true });
    this.#latest.addEventListener("click", () => {
      this.toEnd();
      byId("text").focus();
    });
    new ResizeObserver(() => this.#follows && this.toEnd()).observe(this.#scroller);
    new ResizeObserver(() => this.#follows && this.toEnd()).observe(this.#entries);
    addEventListener("pagehide", () => this.#writing && this.#write());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#seen(0);
    });
    this.#bringBack();
  }

  set title(title) {
    this.#title = title;
    this.#seen(this.#unseen);
  }

  /** What somebody said. */
  heard(sender, text, path, at = now()) {
    const from = { id: sender.id, name: nameOf(sender) };
    this.#message(from, text, at, [pathMark(path)]);
    this.#keep({ ...from, text, at, path });
    this.#news();
  }

  /** What was said here. Returns its `Receipts`. */
  said(text, peers, at = now()) {
    const kept = { text, at, state: "" };
    const receipts = new Receipts(peers, (state) => {
      kept.state = state;
      this.#writeSoon();
    });
    this.#message(null, text, at, [receipts.mark], [receipts.list]);
    this.#keep(kept);
    this.toEnd();
    return receipts;
  }

  /** An entry that is more than text, by `sender` or by us (null). While it has `data-live` in it, it stays. */
  card(sender, content, at = now()) {
    this.#message(sender && { id: sender.id, name: nameOf(sender) }, content, at, []);
    if (sender) this.#news();
    else this.toEnd();
  }

  /**
   * What happened: a text, or parts of it, of which the names are `named`, so that none can be taken
   * for words of the page. `kind`: "", "warn", "bad" or "operator".
   */
  notice(parts, kind = "") {
    const words = kind === "operator" ? [el("strong", {}, "The operator says: "), parts] : [parts].flat();
    this.#add(el("li", { className: `notice ${kind}` }, el("p", {}, ...words, " ", stamp(now()))));
    this.#last = { who: null, at: 0 };
    if (kind === "operator") this.#news();
  }

  toEnd() {
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#top = this.#scroller.scrollTop;
    this.#allRead();
  }

  #message(from, content, at, marks, more = []) {
    const who = from ? from.id : "";
    const first = this.#last.who !== who || at - this.#last.at > TOGETHER;
    this.#last = { who, at };
    const body = typeof content === "string" ? el("p", { className: "said" }, content) : content;
    const item = el("li", { className: `message${from ? "" : " own"}${first ? " first" : ""}` });
    if (from) {
      const name = el("p", { className: `from ${toneOf(from.id)}` }, el("bdi", { className: "name", title: from.id }, from.name));
      item.append(avatar(from), name);
    } else {
      item.append(el("span", { className: "hidden" }, "You:"));
    }
    item.append(el("div", { className: "bubble" }, body, el("div", { className: "meta" }, stamp(at), ...marks), ...more));
    this.#add(item);
  }

  #add(item) {
    this.#entries.append(item);
    // Others can't fill the page with what stays: at most 16 of their files wait, and everything else
    // that is live somebody here has sent or accepted.
    let oldest = this.#entries.firstElementChild;
    while (this.#entries.childElementCount > MAX_ENTRIES && oldest !== item) {
      const next = oldest.nextElementSibling;
      if (!oldest.querySelector("[data-live]")) {
        for (const link of oldest.querySelectorAll("a[download]")) URL.revokeObjectURL(link.href);
        // What follows is of the same person, unless it begins anew.
        if (oldest.classList.contains("first") && next.classList.contains("message")) next.classList.add("first");
        oldest.remove();
      }
      oldest = next;
    }
  }

  /** Whether the latest is to be kept in sight, now that something was scrolled. */
  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    // Not at the end may also be because more has come meanwhile: who wants to see the past goes up.
    if (scrollHeight - scrollTop - clientHeight < NEAR_END) this.#allRead();
    else if (scrollTop < this.#top) this.#follows = false;
    this.#top = scrollTop;
  }

  /** Something came that somebody would want to see. */
  #news() {
    if (document.hidden) this.#seen(this.#unseen + 1);
    if (this.#follows) return;
    this.#unread += 1;
    setText(this.#latest, this.#unread === 1 ? "1 new message" : `${this.#unread} new messages`);
    setHidden(this.#latest, false);
  }

  #allRead() {
    this.#follows = true;
    this.#unread = 0;
    setHidden(this.#latest, true);
  }

  #seen(unseen) {
    this.#unseen = unseen;
    document.title = unseen ? `(${unseen}) ${this.#title}` : this.#title;
  }

  // --- what a reload brings back ---

  #keep(message) {
    this.#kept.push(message);
    if (this.#kept.length > 2 * MAX_KEPT) this.#kept.splice(0, MAX_KEPT);
    this.#writeSoon();
  }

  #writeSoon() {
    this.#writing ||= setTimeout(() => this.#write(), WRITE_AFTER);
  }

  #write() {
    clearTimeout(this.#writing);
    this.#writing = 0;
    let size = 0;
    let from = this.#kept.length;
    while (from > 0 && this.#kept.length - from < MAX_KEPT && size < MAX_KEPT_SIZE) size += this.#kept[--from].text.length;
    keep("session", `log ${this.#room}`, JSON.stringify(this.#kept.slice(from)));
  }

  #bringBack() {
    let kept;
    try {
      kept = JSON.parse(recall("session", `log ${this.#room}`) ?? "[]");
    } catch {
      return; // somebody else wrote it
    }
    if (!Array.isArray(kept) || !kept.length) return;
    this.#live.setAttribute("aria-live", "off"); // it was read out before
    for (const message of kept.slice(-MAX_KEPT)) {
      if (typeof message?.text !== "string" || typeof message.at !== "number") continue;
      const from = typeof message.id === "string" ? { id: message.id, name: String(message.name ?? message.id) } : null;
      this.#message(from, message.text, message.at, from ? [pathMark(message.path ?? null)] : oldMark(message.state));
      this.#kept.push(message);
    }
    this.#entries.lastElementChild?.classList.add("old");
    this.#last = { who: null, at: 0 };
    this.toEnd();
    setTimeout(() => this.#live.setAttribute("aria-live", "polite"), 1000);
  }
}

function stamp(at) {
  return el("time", { dateTime: new Date(at * 1000).toISOString(), title: time(at) }, minute(at));
}

/** How far a message of ours was when the page before ended. */
function oldMark(state) {
  if (!STATES.includes(state)) return []; // nobody was here
  const arrived = state === "delivered";
  const mark = el("span", { className: "ticks", data: { state: arrived ? state : "unknown" } });
  mark.append(icon(arrived ? state : "failed"), arrived ? STATE_WORDS[state] : NOT_KNOWN);
  return [mark];
}

/** How far one message of ours is, with each of those it went to. */
class Receipts {
  #peers = new Map(); // peer -> {name, state, text}
  #changed;
  #text = el("span", {}, "");
  #icon = el("span", {});
  mark = el("button", { type: "button", className: "ticks", aria: { expanded: "false" } }, this.#icon, this.#text);
  list = el("ul", { className: "receipts", hidden: true, aria: { label: "Delivery" } });

  /** `changed(state)` is told how it is with the one with whom it is worst. */
  constructor(peers, changed) {
    this.#changed = changed;
    for (const peer of peers) this.#peers.set(peer, { name: nameOf(peer), state: "sending", text: STATE_WORDS.sending });
    this.mark.addEventListener("click", () => {
      setHidden(this.list, !this.list.hidden);
      setAttribute(this.mark, "aria-expanded", String(!this.list.hidden));
      this.#show();
    });
    this.#show();
  }

  set(peer, state, text = STATE_WORDS[state]) {
    const receipt = this.#peers.get(peer);
    if (!receipt || receipt.state === "failed") return;
    Object.assign(receipt, { state, text: state === "delivered" ? `delivered ${time(now())}` : text });
    this.#show();
  }

  #show() {
    const all = [...this.#peers.values()];
    const worst = STATES.find((each) => all.some((receipt) => receipt.state === each));
    const state = worst ?? "sent";
    if (worst) this.#changed(worst);
    setAttribute(this.mark, "data-state", state);
    this.#icon.replaceChildren(icon(state));
    setText(this.#text, this.#words(all, state));
    if (this.list.hidden) return;
    const rows = all.map((each) => el("li", {}, el("bdi", { className: "name" }, each.name), el("span", { className: each.state === "failed" ? "bad" : "" }, each.text)));
    this.list.replaceChildren(...rows);
    if (!rows.length) this.list.append(el("li", {}, "Nobody else was here."));
  }

  #words(all, state) {
    if (!all.length) return "nobody here";
    const count = (wanted) => all.filter((each) => each.state === wanted).length;
    if (state === "delivered") return all.length === 1 ? "delivered" : `delivered to ${all.length}`;
    if (state === "failed") return all.length === 1 ? "not delivered" : `not delivered to ${count("failed")} of ${all.length}`;
    const done = count("delivered");
    return done ? `delivered to ${done} of ${all.length}` : STATE_WORDS[state];
  }
}
