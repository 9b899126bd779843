// A room's chat: who is here, what was said, and how it came.

import { PeerManager } from "/meshpeer.js";
import { byId, el, named, setAttribute, setText } from "../common/dom.js";
import { counted, pathName } from "../common/format.js";
import { keepName, keepRoom, labelError, pathRoom, recallName } from "../common/places.js";
import { keep, recall } from "../common/storage.js";
import { installTheme } from "../common/theme.js";
import { Diagnostics } from "./diagnostics.js";
import { answerToken, ask, isSure, isToken, tokenOf } from "./gate.js";
import { icon } from "./icons.js";
import { installInvite } from "./invite.js";
import { Log } from "./log.js";
import { nameOf } from "./names.js";
import { People } from "./people.js";
import { Transfers } from "./transfers.js";
import { cut, isLocked, whyNotDelivered, whyOut } from "./words.js";

const CHANNEL = "chat";
const MAX_SHOWN = 20_000; // characters of one message
const TELL_LOSS_AFTER = 2000; // milliseconds: what is mended by then nobody needs to read
const LEAVE_WITHIN = 1000; // milliseconds that leaving may take
const MAX_NAMES = 500; // of those that were here

const room = pathRoom(location.pathname) ?? "";
const log = new Log(room);
const transfers = new Transfers(log);
const people = new People((peer) => chooseFiles(peer));
const diagnostics = new Diagnostics();

let name = recallName();
let told = null; // the name that we told the relay, which may have given us another; null: none
let token = tokenOfAddress();
let mesh = null; // the PeerManager while there is one
let here = false; // we have had our seat, and what follows is news
let entering = false; // somebody is asked, or the relay is
let filesFor = null; // who is to have what is chosen next; null: ask
const paths = new Map(); // peer id -> the path that was told last
const lost = new Map(); // peer id, or "" for the relay -> what was said of its loss, or will be
const names = new Map(); // peer id -> the name it had last, which is wanted when it is gone
const renewed = new Map(); // ids of those that began anew -> whether their loss was told

/** `#token=…` in the address, which is not to be passed on with it. */
function tokenOfAddress() {
  if (location.hash.startsWith("#token=")) {
    const given = tokenOf(location.hash);
    if (isToken(given)) keep("session", `token ${room}`, given);
    history.replaceState(null, "", location.pathname + location.search);
    if (isToken(given)) return given;
  }
  return recall("session", `token ${room}`);
}

// --- joining and leaving ---------------------------------------------------------------------------

/** Enters the room; `again`: not before somebody has said so. */
async function begin(again = false) {
  if (entering || mesh) return;
  entering = true;
  byId("empty").removeAttribute("data-out");
  setText(byId("empty"), "");
  const isIn = await enter(again);
  entering = false;
  if (!isIn) out("Not in the room");
}

/** Returns whether we are in. */
async function enter(again) {
  let given = { title: `Enter ${room}`, text: "Choose the name that others see.", yes: "Enter" };
  let wanted = again || (recallName() === "" && recall("session", `asked ${room}`) === null);
  for (;;) {
    if (wanted) {
      const answer = await ask({ ...given, name });
      if (answer === null) return false;
      name = answer.name;
      keepName(name);
      keep("session", `asked ${room}`, "yes");
      if (answer.token) {
        token = answer.token;
        keep("session", `token ${room}`, token);
      }
    }
    const tried = token;
    const error = await join();
    if (error === null) return true;
    wanted = token === tried; // else a link was opened meanwhile
    const locked = isLocked(error);
    given = {
      title: locked ? `${room} is not open to everybody` : `Could not enter ${room}`,
      text: locked ? "Who may enter has a join token, often as part of a link." : "",
      token: locked,
      error: locked && !token ? "" : whyOut(error),
      yes: locked ? "Enter" : "Try again",
    };
    setOwn("closed", locked ? "Not allowed in" : "Could not join");
  }
}

/** Returns why not, or null. */
async function join() {
  here = false;
  paths.clear();
  for (const id of [...lost.keys()]) found(id);
  renewed.clear();
  setOwn("joining", "Joining");
  try {
    told = name || null;
    const next = new PeerManager(location.origin, { room, name: told, joinToken: token || null });
    listen(next);
    window.MeshPeerDebug = next.debug; // also while it can't join
    diagnostics.use(next);
    await next.start();
    mesh = next;
  } catch (error) {
    return error;
  }
  here = true;
  if (mesh.name === told) tellName(); // it was changed meanwhile
  keepRoom(room);
  const others = list([...mesh.peers.values()].map(nameOf));
  log.notice(["You are in ", named(room), ...(others.length ? [", with ", ...others] : []), "."]);
  write.text.disabled = write.send.disabled = write.attach.disabled = false;
  if (!document.querySelector("dialog[open]") && matchMedia("(hover: hover)").matches) write.text.focus();
  showOwn();
  showPeople();
  return null;
}

/** "Ann", "Ann and Ben", "Ann, Ben and 3 others", in parts. */
function list(all) {
  const parts = all.slice(0, all.length > 3 ? 2 : 3).map((each) => named(each));
  if (all.length > 3) parts.push(`${all.length - 2} others`);
  return parts.flatMap((part, at) => (at === 0 ? [part] : [at === parts.length - 1 ? " and " : ", ", part]));
}

async function ended(error) {
  left();
  out("Not in the room");
  const text = whyOut(error);
  log.notice(`You are out of the room. ${text}`, "bad");
  const answer = await ask({ title: `You are out of ${room}`, text, name, yes: "Enter again" });
  if (answer === null) return;
  name = answer.name;
  keepName(name);
  begin();
}

/** There is no room any more in which something can be done. */
function left() {
  mesh = null;
  write.text.disabled = write.send.disabled = write.attach.disabled = true;
  people.show(null, []);
}

/** Nothing happens until somebody wants to be in the room again. */
function out(text) {
  setOwn("closed", text);
  const again = el("button", { type: "button", className: "strong" }, "Enter");
  again.addEventListener("click", () => begin(true));
  byId("empty").replaceChildren(el("span", {}, "You are not in the room."), again);
  setAttribute(byId("empty"), "data-out", "");
  log.toEnd();
  again.focus();
}

/** `wait`: what passes by, which nobody wants to have read out. */
function setOwn(state, text, wait = "") {
  setAttribute(byId("own"), "data-state", state);
  setText(byId("own-text"), text);
  setText(byId("own-wait"), wait);
  setAttribute(byId("own"), "title", `${text}${wait}`);
  if (state !== "joined" && !byId("empty").hasAttribute("data-out")) setText(byId("empty"), state === "joining" ? "Joining…" : text);
}

/** How we stand with the relay, in words that last until it changes. */
function showOwn() {
  if (!mesh) return;
  if (mesh.state === "reconnecting") {
    const wait = Math.ceil(mesh.debug.getSignalingStatus().retryIn ?? 0);
    return setOwn("reconnecting", "Relay away", wait > 0 ? ` · ${wait} s` : ""); // until it is asked again
  }
  if (mesh.state !== "joined") return setOwn("joining", "Joining");
  const peers = [...mesh.peers.values()];
  const connected = peers.filter((peer) => peer.state === "connected").length;
  const all = connected === peers.length ? String(connected) : `${connected} of ${peers.length}`;
  setOwn("joined", peers.length ? `Connected to ${all}` : "Nobody else here");
  const [title, more] = peers.length
    ? ["Say hello", "What you write goes to everybody in the room, directly where there is a way."]
    : ["You are the first one here", "Invite others with the link or the code."];
  // This is called every second: what is the same stays, as somebody may have selected it.
  if (byId("empty").textContent !== title + more) {
    byId("empty").replaceChildren(el("span", {}, el("strong", {}, title), more));
  }
}

// --- what happens ----------------------------------------------------------------------------------

function listen(next) {
  const on = (type, handler) => next.addEventListener(type, (event) => handler(event.detail));
  transfers.use(next);
  on("message", heard);
  on("notice-received", ({ text }) => log.notice(text, "operator"));
  on("signaling-changed", signalingChanged);
  on("joined", joined);
  on("peer-joined", peerJoined);
  on("peer-left", peerLeft);
  on("peer-updated", (event) => {
    remember(event);
    showPeople();
  });
  on("peer-state-changed", stateChanged);
  on("connection-report", pathChanged);
  on("messages-undelivered", undelivered);
  on("closed", ({ error }) => {
    if (mesh === next) ended(error);
  });
}

/** A text for people, or null: `{text}` on the chat's channel, or a plain string on any. */
function textOf(message) {
  const { data } = message;
  const text = typeof data === "string" ? data : message.channel === CHANNEL ? data?.text : null;
  if (typeof text !== "string" || text === "") return null;
  return cut(text, MAX_SHOWN);
}

function heard(message) {
  const text = textOf(message);
  if (text !== null) log.heard(message.sender, text, message.path, message.receivedAt.getTime() / 1000);
  if (message.wantsReply) {
    Promise.resolve(message.replyError("people read here, and nothing answers by itself")).catch(() => {
      // who asked is gone
    });
  }
}

/** Says that something is lost, unless it is found soon. `text`: as `Log.notice` takes it. */
function lose(id, text) {
  if (lost.has(id)) return;
  const loss = { told: false, timer: 0 };
  loss.timer = setTimeout(() => {
    loss.told = true;
    log.notice(text, "warn");
  }, TELL_LOSS_AFTER);
  lost.set(id, loss);
}

/** It is found, or gone for good. Returns whether its loss was told. */
function found(id) {
  const loss = lost.get(id);
  clearTimeout(loss?.timer);
  lost.delete(id);
  return loss?.told ?? false;
}

function signalingChanged({ state }) {
  if (here && state === "reconnecting") lose("", "The relay is away. Direct connections go on meanwhile.");
  showOwn();
}

function joined() {
  if (found("") && here) log.notice("The relay is back.");
  showOwn();
  showPeople();
}

function remember({ peerId, name: given }) {
  names.delete(peerId);
  names.set(peerId, given);
  if (names.size > MAX_NAMES) names.delete(names.keys().next().value);
}

/** How people call who an event is about, set apart from the words around it. */
const called = ({ peerId, name: given = names.get(peerId) ?? null }) => named(nameOf({ id: peerId, name: given }));

function peerJoined(event) {
  const told = renewed.get(event.peerId);
  renewed.delete(event.peerId);
  remember(event);
  if (here && told !== false) log.notice([called(event), ` is ${told ? "back" : "here"}.`]);
  showPeople();
}

const LEFT = {
  left: " left.",
  timeout: " is gone: nothing was heard any more.",
  removed: " was removed by the operator.",
};

function peerLeft(event) {
  const { peerId, reason } = event;
  paths.delete(peerId);
  const told = found(peerId);
  if (reason === "superseded") renewed.set(peerId, told);
  else if (reason in LEFT) log.notice([called(event), LEFT[reason]]);
  showPeople();
}

function stateChanged(event) {
  const { peerId, state, previous, path } = event;
  if (previous === "connected" && (state === "disconnected" || state === "failed")) {
    lose(peerId, ["The connection to ", called(event), " is lost. What you write waits."]);
  } else if (state === "connected") {
    if (found(peerId)) log.notice(["Connected to ", called(event), ` again${path ? `: ${pathName(path)}` : ""}.`]);
    else if (path === "relay") log.notice(["There is no direct way to ", called(event), " yet: it goes over the relay."]);
    if (path) paths.set(peerId, path);
  }
  showPeople();
}

function pathChanged(event) {
  const { peerId, path } = event;
  const before = paths.get(peerId);
  if (path !== null && before !== undefined && before !== path) {
    if (path === "relay") log.notice(["The direct way to ", called(event), " is gone: it goes over the relay."], "warn");
    else if (before === "relay") log.notice(["It goes to ", called(event), ` ${path === "direct" ? "directly" : "over TURN"} now.`]);
  }
  if (path !== null) paths.set(peerId, path);
  showPeople();
}

function undelivered({ peerId, messages }) {
  const texts = messages.filter((message) => message.channel === CHANNEL).length;
  if (texts) log.notice([`${counted(texts, "message")} did not reach `, called({ peerId }), "."], "bad");
}

let drawing = false;
function showPeople() {
  if (drawing) return;
  drawing = true;
  // Not with the next frame: a tab in the background has none, and its title tells of it.
  setTimeout(() => {
    drawing = false;
    if (!mesh) return;
    people.show({ id: mesh.peerId, name: mesh.name, state: mesh.state }, mesh.peers.values());
    showOwn();
  }, 30);
}

// --- what somebody does ----------------------------------------------------------------------------

const write = { form: byId("write"), text: byId("text"), send: byId("send"), attach: byId("attach") };

function send(text) {
  const peers = [...mesh.peers.values()];
  const receipts = log.said(text, peers);
  for (const peer of peers) {
    peer.send({ text }, CHANNEL).then(async () => {
      receipts.set(peer, "sent");
      await peer.flush();
      receipts.set(peer, "delivered");
    }).catch((error) => receipts.set(peer, "failed", whyNotDelivered(error)));
  }
}

function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  write.text.style.height = "auto";
  write.text.style.height = `${write.text.scrollHeight + 2}px`;
}

write.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = write.text.value.trimEnd();
  if (!mesh || text.trim() === "") return;
  write.text.value = "";
  fit();
  send(text);
});
write.text.addEventListener("input", fit);
write.text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  write.form.requestSubmit();
});

function chooseFiles(peer) {
  filesFor = peer;
  byId("files").click();
}
write.attach.addEventListener("click", () => chooseFiles(null));
byId("files").addEventListener("change", () => {
  transfers.send([...byId("files").files], filesFor);
  byId("files").value = "";
});
write.text.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  transfers.send(files);
});

const talk = byId("talk");
let inside = 0; // how deep in the conversation something is dragged
const hasFiles = (event) => mesh !== null && event.dataTransfer.types.includes("Files");
function dragged(by) {
  inside = by === 0 ? 0 : inside + by;
  byId("drop").hidden = inside === 0;
}
talk.addEventListener("dragenter", (event) => hasFiles(event) && dragged(1));
talk.addEventListener("dragleave", (event) => hasFiles(event) && dragged(-1));
talk.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
talk.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragged(0);
  transfers.send([...event.dataTransfer.files]);
});

/** Why the room can't know us by this name, or null. */
function whyNotCalled(wanted) {
  if (mesh && mesh.name !== told) return "In this room the relay says what you are called.";
  if ((mesh || entering) && told !== null && wanted === "") return "In the room a name can be changed, but not taken away.";
  return null;
}

/** Tells the others our name, if it is another. */
function tellName() {
  if (!name || name === told) return;
  try {
    mesh.update({ name });
    told = name;
  } catch {
    log.notice("The others could not be told your new name just now.", "bad");
  }
}

byId("rename").addEventListener("click", async () => {
  const answer = await ask({ title: "Change your name", name, yes: "Change", refuse: whyNotCalled });
  if (answer === null) return;
  name = answer.name;
  keepName(name);
  if (!mesh) return; // they are told once we are in
  tellName();
  showPeople();
});

// A page that is left keeps its seat, as it may be loaded again; who goes elsewhere leaves the room.
document.querySelector(".home").addEventListener("click", async (event) => {
  if (!mesh || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const leaving = mesh;
  if (leaving.state === "reconnecting") {
    const text = "The relay is away: there is no list of rooms now, and no way back in before it is there again.";
    if (!(await isSure({ title: `Leave ${room}?`, text, yes: "Leave" })) || mesh !== leaving) return;
  }
  const away = leaving.state === "reconnecting";
  left();
  const late = new Promise((resolve) => setTimeout(resolve, LEAVE_WITHIN));
  await Promise.race([leaving.close().catch(() => {}), late]);
  if (away) out("Not in the room"); // the other page could not be loaded
  else location.assign("/");
});

// A link with a token was opened in this tab, which stays: all that it changes is the fragment.
addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#token=")) return;
  token = tokenOfAddress();
  if (mesh) return; // it is for the next time
  if (byId("gate").open) answerToken(token);
  else begin();
});

// A page that comes back from the browser's cache, while another one of this tab had its seat.
addEventListener("pageshow", (event) => {
  if (event.persisted && !mesh) location.reload();
});

// --- off it goes -----------------------------------------------------------------------------------

installTheme(byId("theme"));
write.send.append(icon("send"));
write.attach.append(icon("attach"));
write.text.disabled = write.send.disabled = write.attach.disabled = true;
setText(byId("room"), room);
log.title = room;
installInvite(room, () => Boolean(token));
setInterval(() => {
  if (!document.hidden) showPeople(); // round trips, and how long until the relay is asked again
}, 1000);
if (labelError("A room", room) === null && room) begin();
else {
  setOwn("closed", "No such room");
  setText(byId("empty"), "A room can't have this name.");
}
