// Files: sent to some or all, offered by others, taken or declined.

import { byId, el, named, setHidden, setText } from "../common/dom.js";
import { bytes } from "../common/format.js";
import { icon } from "./icons.js";
import { isBot, nameOf } from "./names.js";
import { whyNoFile } from "./words.js";

export class Transfers {
  #mesh;
  #log;
  #offers = new Map(); // peer id -> the row of its offer that waits

  constructor(log) {
    this.#log = log;
  }

  /** A session begins. */
  use(mesh) {
    this.#mesh = mesh;
    this.#offers.clear();
    mesh.addEventListener("file-offered", ({ detail }) => this.#offered(detail));
    mesh.addEventListener("file-withdrawn", ({ detail }) => this.#withdrawn(detail));
  }

  /** Asks who is to have these files, if there is a choice, and sends them. */
  async send(files, to = null) {
    if (!files.length) return;
    const peers = to ? [to] : await this.#ask(files);
    for (const file of files) if (peers.length) this.#sendOne(file, peers);
  }

  async #ask(files) {
    const peers = this.#mesh ? [...this.#mesh.peers.values()] : [];
    if (!peers.length) {
      this.#log.notice("Nobody is here who could take a file.", "warn");
      return [];
    }
    if (peers.length === 1) return peers;
    setText(byId("to-title"), files.length === 1 ? `Send ${files[0].name} to` : `Send ${files.length} files to`);
    const onlyBots = peers.every(isBot); // which seldom take files
    const boxes = peers.map((peer) => [peer, el("input", { type: "checkbox", checked: onlyBots || !isBot(peer) })]);
    byId("to-peers").replaceChildren(...boxes.map(([peer, box]) => el("li", {}, el("label", {}, box, el("bdi", { className: "name" }, nameOf(peer)), isBot(peer) ? el("small", {}, "bot") : ""))));
    const dialog = byId("to");
    dialog.returnValue = "";
    dialog.showModal();
    byId("to-no").onclick = () => dialog.close("no");
    byId("to-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close("yes");
    };
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    return dialog.returnValue === "yes" ? boxes.filter(([, box]) => box.checked).map(([peer]) => peer) : [];
  }

  #sendOne(file, peers) {
    const list = el("ul", { className: "transfers" });
    for (const peer of peers) {
      const row = new Row(peers.length > 1 ? [named(nameOf(peer)), ": "] : [], file.size);
      const abort = new AbortController();
      row.say(...(peers.length > 1 ? ["waiting"] : ["waiting for ", named(nameOf(peer)), " to take it"]));
      row.actions([["Cancel", () => abort.abort()]]);
      list.append(row.element);
      const onProgress = (progress) => row.progress(progress.done);
      peer.sendFile(file, { name: file.name, onProgress, signal: abort.signal }).then(
        () => row.end("received and checked"),
        (error) => (abort.signal.aborted ? row.end("cancelled") : row.fail("not sent: ", whyNoFile(error))),
      );
    }
    this.#log.card(null, card(file.name, file.size, list));
  }

  #offered({ peerId, name, size }) {
    const peer = this.#mesh.peers.get(peerId);
    if (!peer) return;
    const mesh = this.#mesh;
    const row = new Row([], size);
    const abort = new AbortController();
    row.say("offered to you");
    const accept = async () => {
      this.#offers.delete(peerId);
      row.say("");
      row.actions([["Cancel", () => abort.abort()]]);
      try {
        const file = await mesh.receiveFile({ sender: peerId, onProgress: (progress) => row.progress(progress.done), signal: abort.signal });
        row.end("received and checked");
        row.save(file.blob, file.name);
      } catch (error) {
        if (abort.signal.aborted) row.end("cancelled");
        else row.fail("not received: ", whyNoFile(error));
      }
    };
    const decline = () => {
      this.#offers.delete(peerId);
      mesh.refuseFile(peerId, "declined");
      row.end("declined");
    };
    row.actions([["Accept", accept, "strong"], ["Decline", decline]]);
    this.#offers.set(peerId, row);
    this.#log.card(peer, card(name, size, el("ul", { className: "transfers" }, row.element)));
  }

  #withdrawn({ peerId }) {
    const row = this.#offers.get(peerId);
    this.#offers.delete(peerId);
    row?.end("withdrawn");
  }
}

function card(name, size, transfers) {
  const title = el("div", {}, el("p", { className: "title" }, el("bdi", {}, name)), el("p", { className: "size" }, bytes(size)));
  return el("div", { className: "file" }, el("span", { className: "kind" }, icon("file")), title, transfers);
}

/**
 * One transfer: what is said of it, how far it is, and what can be done. It is live until it is over, and
 * a file that arrived until it is saved.
 */
class Row {
  #who;
  #size;
  #began = null; // [seconds, bytes] when the first progress came
  #words = el("span");
  #moving = el("span", { aria: { live: "off" } }); // ten times a second is too often to be read out
  #status = el("span", { className: "status" }, this.#words, this.#moving);
  #actions = el("span", { className: "actions" });
  #bar = el("progress", { max: 1, value: 0, aria: { label: "Progress", live: "off" } });
  element = el("li", { data: { live: "" } }, this.#status, this.#actions, this.#bar);

  constructor(who, size) {
    this.#who = who;
    this.#size = size;
    setHidden(this.#bar, true); // until something moves
    this.#actions.addEventListener("keydown", (event) => {
      // The key that was held down on one button would press the one that follows.
      if (event.repeat && event.key === "Enter") event.preventDefault();
    });
  }

  /** Parts: texts, and what others wrote, set apart. */
  say(...parts) {
    this.#moving.replaceChildren();
    this.#words.replaceChildren(...this.#who, ...parts);
  }

  progress(done) {
    setHidden(this.#bar, false);
    const now = performance.now() / 1000;
    if (!this.#began || done < this.#began[1]) this.#began = [now, done];
    const speed = (done - this.#began[1]) / (now - this.#began[0]);
    this.#bar.value = this.#size ? done / this.#size : 1;
    const share = this.#size ? Math.floor((100 * done) / this.#size) : 100;
    this.#words.replaceChildren();
    this.#moving.replaceChildren(...this.#who, `${share} %${Number.isFinite(speed) && speed > 0 ? ` · ${bytes(Math.round(speed))}/s` : ""}`);
  }

  /** It is over, one way or the other. */
  end(...parts) {
    this.say(...parts);
    this.#show();
    delete this.element.dataset.live;
    setHidden(this.#bar, true);
  }

  /** It is over, and nothing has come of it. */
  fail(...parts) {
    this.end(...parts);
    this.#status.classList.add("bad");
  }

  /** Offers the file for saving: the browser asks where, or has a folder for it. */
  save(blob, name) {
    const link = el("a", { className: "button", href: URL.createObjectURL(blob), download: name }, "Save");
    link.addEventListener("click", () => delete this.element.dataset.live);
    this.element.dataset.live = "";
    this.#show(link);
  }

  /** Buttons: [text, what it does, class]. */
  actions(buttons) {
    this.#show(...buttons.map(([text, act, className = "quiet"]) => {
      const button = el("button", { type: "button", className }, text);
      button.addEventListener("click", act);
      return button;
    }));
  }

  /** Replaces what can be done. The focus stays in this row if it was there. */
  #show(...controls) {
    const hadFocus = this.element.contains(document.activeElement);
    this.#actions.replaceChildren(...controls);
    if (!hadFocus) return;
    if (!controls.length) this.#status.tabIndex = -1;
    (controls[0] ?? this.#status).focus({ preventScroll: true });
  }
}
