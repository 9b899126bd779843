// A room's chat: who is here, what was said, and how it came.

import { PeerManager } from "/meshpeer.js";
import { byId, el, setAttribute, setText } from "../common/dom.js";
import { counted, pathName } from "../common/format.js";
import { keepName, keepRoom, labelError, pathRoom, recallName } from "../common/places.js";
import { keep, recall } from "../common/storage.js";
import { installTheme } from "../common/theme.js";
import { Diagnostics } from "./diagnostics.js";
import { ask } from "./gate.js";
import { icon } from "./icons.js";
import { installInvite } from "./invite.js";
import { Log } from "./log.js";
import { nameOf } from "./names.js";
import { People } from "./people.js";
import { Transfers } from "./transfers.js";

const CHANNEL = "chat";
const MAX_SHOWN = 20_000; // characters of one message
const TELL_LOSS_AFTER = 2000; // milliseconds: what is mended by then nobody needs to read
const LEAVE_WITHIN = 1000; // milliseconds that leaving may take
const TOKEN_CODES = new Set(["unauthorized", "forbidden"]);

const room = pathRoom(location.pathname) ?? "";
const log = new Log(room);
const transfers = new Transfers(log);
const people = new People((peer) => chooseFiles(peer));
const diagnostics = new Diagnostics();

let name = recallName();
let token = tokenOfAddress();
let mesh = null; // the PeerManager while there is one
let here = false; // we have had our seat, and what follows is news
let retryAt = null; // when the relay is asked again, in ms
let filesFor = null; // who is to have what is chosen next; null: ask
const paths = new Map(); // peer id -> the path that was told last
const lost = new Map(); // peer id, or "" for the relay -> what was said of its loss, or will be
const renewed = new Map(); // ids of those that began anew -> whether their loss was told

/** `#token=…` in the address, which is not to be passed on with it. */
function tokenOfAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    keep("session", `token ${room}`, given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return given ?? recall("session", `token ${room}`);
}

// --- joining and leaving ---------------------------------------------------------------------------

async function begin() {
  let given = { title: `Enter ${room}`, text: "Choose the name that others see.", yes: "Enter" };
  let wanted = recallName() === "" && recall("session", `asked ${room}`) === null;
  for (;;) {
    if (wanted) {
      const answer = await ask({ ...given, name });
      if (answer === null) return setOwn("closed", "You are not in the room", true);
      name = answer.name;
      keepName(name);
      keep("session", `asked ${room}`, "yes");
      if (answer.token) {
        token = answer.token;
        keep("session", `token ${room}`, token);
      }
    }
    const error = await join();
    if (error === null) return;
    wanted = true;
    const locked = TOKEN_CODES.has(error.code);
    given = {
      title: locked ? `${room} is not open to everybody` : `Could not enter ${room}`,
      text: locked ? "Who may enter has a join token, often as part of a link." : "",
      token: locked,
      error: locked && !token ? "" : error.message,
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
    const next = new PeerManager(location.origin, { room, name: name || null, joinToken: token || null });
    listen(next);
    await next.start();
    mesh = next;
  } catch (error) {
    return error;
  }
  window.MeshPeerDebug = mesh.debug;
  diagnostics.use(mesh);
  here = true;
  keepRoom(room);
  const others = [...mesh.peers.values()].map(nameOf);
  log.notice(`You are in ${room}${others.length ? `, with ${list(others)}` : ""}.`);
  write.text.disabled = write.send.disabled = write.attach.disabled = false;
  if (!document.querySelector("dialog[open]") && matchMedia("(hover: hover)").matches) write.text.focus();
  showOwn();
  showPeople();
  return null;
}

/** "Ann", "Ann and Ben", "Ann, Ben and 3 others". */
function list(names) {
  if (names.length < 3) return names.join(" and ");
  return names.length === 3 ? `${names[0]}, ${names[1]} and ${names[2]}` : `${names[0]}, ${names[1]} and ${names.length - 2} others`;
}

async function ended(reason, error) {
  mesh = null;
  retryAt = null;
  write.text.disabled = write.send.disabled = write.attach.disabled = true;
  setOwn("closed", "You are not in the room", true);
  people.show(null, []);
  const text = error?.message ?? reason;
  log.notice(`You are out of the room: ${text}`, "bad");
  const answer = await ask({ title: `You are out of ${room}`, text, name, yes: "Enter again" });
  if (answer === null) return;
  name = answer.name;
  keepName(name);
  begin();
}

function setOwn(state, text, again = false) {
  setAttribute(byId("own"), "data-state", state);
  setText(byId("own-text"), text);
  byId("own").title = again ? "Load the page again to enter" : text;
  if (state !== "joined") setText(byId("empty"), state === "joining" ? "Joining…" : text);
}

/** How we stand with the relay, in words that last until it changes. */
function showOwn() {
  if (!mesh) return;
  if (mesh.state === "reconnecting") {
    const wait = retryAt === null ? 0 : Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
    return setOwn("reconnecting", wait ? `Relay away, asked again in ${wait} s` : "Relay away, asking again");
  }
  if (mesh.state !== "joined") return setOwn("joining", "Joining");
  const peers = [...mesh.peers.values()];
  const connected = peers.filter((peer) => peer.state === "connected").length;
  const all = connected === peers.length ? String(connected) : `${connected} of ${peers.length}`;
  setOwn("joined", peers.length ? `Connected to ${all}` : "Nobody else is here yet");
  byId("empty").replaceChildren(
    el("span", {}, el("strong", {}, peers.length ? "Say hello" : "You are the first one here"), peers.length ? "What you write goes to everybody in the room, directly where there is a way." : "Invite others with the link or the code."),
  );
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
  on("peer-updated", showPeople);
  on("peer-state-changed", stateChanged);
  on("connection-report", pathChanged);
  on("messages-undelivered", undelivered);
  on("replaced", () => log.notice("This seat was taken over by another tab or window.", "bad"));
  on("closed", ({ reason, error }) => {
    if (mesh === next) ended(reason, error);
  });
}

/** A text for people, or null: `{text}` on the chat's channel, or a plain string on any. */
function textOf(message) {
  const { data } = message;
  const text = typeof data === "string" ? data : message.channel === CHANNEL ? data?.text : null;
  if (typeof text !== "string" || text === "") return null;
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
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

/** Says that something is lost, unless it is found soon. */
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

function signalingChanged({ state, reason, retryIn }) {
  retryAt = retryIn === null || retryIn === undefined ? null : Date.now() + retryIn * 1000;
  if (here && state === "reconnecting") lose("", `The relay is away (${reason}). Direct connections go on meanwhile.`);
  showOwn();
}

function joined() {
  retryAt = null;
  if (found("") && here) log.notice("The relay is back.");
  showOwn();
  showPeople();
}

const called = (event) => event.name ?? event.peerId;

function peerJoined(event) {
  const told = renewed.get(event.peerId);
  renewed.delete(event.peerId);
  if (here && told !== false) log.notice(`${called(event)} is ${told ? "back" : "here"}.`);
  showPeople();
}

const LEFT = {
  left: (who) => `${who} left.`,
  timeout: (who) => `${who} is gone: nothing was heard any more.`,
  removed: (who) => `${who} was removed by the operator.`,
};

function peerLeft(event) {
  const { peerId, reason } = event;
  paths.delete(peerId);
  const told = found(peerId);
  if (reason === "superseded") renewed.set(peerId, told);
  else if (reason in LEFT) log.notice(LEFT[reason](called(event)));
  showPeople();
}

function stateChanged(event) {
  const { peerId, state, previous, path, reason } = event;
  if (previous === "connected" && (state === "disconnected" || state === "failed")) {
    lose(peerId, `The connection to ${called(event)} is lost (${reason}). What you write waits.`);
  } else if (state === "connected") {
    if (found(peerId)) log.notice(`Connected to ${called(event)} again${path ? `: ${pathName(path)}` : ""}.`);
    else if (path === "relay") log.notice(`There is no direct way to ${called(event)} yet: it goes over the relay.`);
    if (path) paths.set(peerId, path);
  }
  showPeople();
}

function pathChanged(event) {
  const { peerId, path } = event;
  const before = paths.get(peerId);
  if (path !== null && before !== undefined && before !== path) {
    if (path === "relay") log.notice(`The direct way to ${called(event)} is gone: it goes over the relay.`, "warn");
    else if (before === "relay") log.notice(`It goes to ${called(event)} ${path === "direct" ? "directly" : "over TURN"} now.`);
  }
  if (path !== null) paths.set(peerId, path);
  showPeople();
}

function undelivered({ peerId, messages }) {
  const peer = mesh?.peers.get(peerId);
  const texts = messages.filter((message) => message.channel === CHANNEL).length;
  if (texts) log.notice(`${counted(texts, "message")} did not reach ${peer ? nameOf(peer) : peerId}.`, "bad");
}

let drawing = false;
function showPeople() {
  if (drawing) return;
  drawing = true;
  // Not with the next frame: a tab in the background has none, and its title tells of it.
  setTimeout(() => {
    drawing = false;
    if (!mesh) return;
    people.show({ id: mesh.peerId, name: name || null, state: mesh.state }, mesh.peers.values());
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
    }).catch((error) => receipts.set(peer, "failed", error.message));
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

byId("rename").addEventListener("click", async () => {
  const answer = await ask({ title: "Change your name", name, yes: "Change" });
  if (answer === null || !mesh) return;
  name = answer.name;
  keepName(name);
  try {
    await mesh.update({ name: name || null });
  } catch (error) {
    log.notice(`The name was not changed: ${error.message}`, "bad");
  }
  showPeople();
});

// A page that is left keeps its seat, as it may be loaded again; who goes elsewhere leaves the room.
document.querySelector(".home").addEventListener("click", async (event) => {
  if (!mesh || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const leaving = mesh;
  mesh = null;
  const late = new Promise((resolve) => setTimeout(resolve, LEAVE_WITHIN));
  await Promise.race([leaving.close().catch(() => {}), late]);
  location.assign("/");
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
installInvite(room);
setInterval(() => {
  if (!document.hidden) showPeople(); // round trips, and how long until the relay is asked again
}, 1000);
if (labelError("A room", room) === null && room) begin();
else setOwn("closed", "A room can't have this name");
