// What the operator can do: each is asked for, done, and told what came of it.

import { byId, el, named, setHidden } from "./dom.js";
import { counted } from "./format.js";

const STAYS = 7000; // milliseconds that good news is shown

/** Says what came of something. Bad news stays until it is closed. */
export function toast(ok, title, text) {
  const close = el("button", { type: "button", className: "quiet", aria: { label: "Close" } }, "×");
  const item = el("div", { className: `toast ${ok ? "ok" : "bad"}` }, el("strong", {}, ok ? "Done: " : "Not done: ", ...title), el("span", {}, text), close);
  close.addEventListener("click", () => item.remove());
  byId("toasts").append(item);
  while (byId("toasts").children.length > 4) byId("toasts").firstChild.remove();
  if (!ok) return;
  let timer = 0;
  const leave = () => (timer = setTimeout(() => item.remove(), STAYS));
  for (const event of ["pointerenter", "focusin"]) item.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) item.addEventListener(event, () => (clearTimeout(timer), leave()));
  leave();
}

/** Asks; resolves with what was written (or an empty string), or null when it was cancelled. */
function ask({ title, text, yes, danger = false, field = null }) {
  const dialog = byId("confirm"), input = byId("confirm-input"), form = dialog.querySelector("form");
  byId("confirm-title").replaceChildren(...title);
  byId("confirm-text").replaceChildren(...text);
  byId("confirm-yes").textContent = yes;
  byId("confirm-yes").classList.toggle("danger", danger);
  setHidden(byId("confirm-field"), field === null);
  byId("confirm-field").firstElementChild.textContent = field ?? "";
  input.value = "";
  input.required = field !== null;
  return new Promise((resolve) => {
    let answer = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      answer = input.value.trim();
      if (field !== null && !answer) return;
      dialog.close();
    };
    byId("confirm-no").onclick = () => dialog.close();
    dialog.onclose = () => resolve(answer);
    dialog.showModal();
    // Not on what can't be taken back.
    (field !== null ? input : danger ? byId("confirm-no") : byId("confirm-yes")).focus();
  });
}

export class Actions {
  #live;

  constructor(live) {
    this.#live = live;
  }

  async restartLink(room, link) {
    const title = ["Restart ICE: ", named(room.name(link.a)), " ↔ ", named(room.name(link.b))];
    const asked = await ask({
      title,
      text: [named(room.name(link.a)), " and ", named(room.name(link.b)), " look for a path anew. Their connection stays, and nothing that is under way is lost."],
      yes: "Restart ICE",
    });
    if (asked !== null) await this.#do(title, "restart_ice", { room: room.id, peerId: link.a, otherPeerId: link.b });
  }

  async restartPeer(room, member) {
    const name = room.name(member.peerId);
    const title = ["Restart ICE: ", named(name)];
    const links = room.linksOf.get(member.peerId)?.length ?? 0;
    const asked = await ask({
      title,
      text: [named(name), ` looks for a path anew with everybody in the room (${counted(links, "link")}). The connections stay, and nothing that is under way is lost.`],
      yes: "Restart ICE",
    });
    if (asked !== null) await this.#do(title, "restart_ice", { room: room.id, peerId: member.peerId });
  }

  async remove(room, member) {
    const name = room.name(member.peerId);
    const title = ["Remove ", named(name)];
    const { peerId, displayName } = member;
    // A name is not unique: the id says who loses its seat.
    const who = displayName === null || displayName === peerId ? [named(peerId)] : [named(displayName), " (", named(peerId), ")"];
    const asked = await ask({
      title,
      text: [...who, " loses its seat in ", named(room.id), " at once, and the others see it leave. It is told not to come back; started anew it may join again."],
      yes: "Remove",
      danger: true,
    });
    if (asked !== null) await this.#do(title, "remove", { room: room.id, peerId: member.peerId });
  }

  async notice(room) {
    const title = ["Notice to ", named(room.id)];
    const text = await ask({
      title,
      text: [`The programs of all ${counted(room.members.length, "member")} are told this text. It can't be taken back.`],
      yes: "Send",
      field: "Text",
    });
    if (text !== null) await this.#do(title, "notice", { room: room.id, text });
  }

  async #do(title, action, about) {
    const { ok, text } = await this.#live.act(action, about);
    toast(ok, title.map((part) => (typeof part === "string" ? part : part.cloneNode(true))), text);
  }
}
