// The dashboard of a relay: what it tells is kept here, and drawn at most once a frame.

import { Actions } from "./actions.js";
import { Activity } from "./activity.js";
import { Detail } from "./detail.js";
import { byId, setAttribute, setClass, setHidden, setText } from "./dom.js";
import { Figures } from "./figures.js";
import { count, counted, long, time } from "./format.js";
import { Graph, drawLegend } from "./graph.js";
import { Live } from "./live.js";
import { Room } from "./model.js";
import { setNames } from "./parts.js";
import { Rooms } from "./rooms.js";
import { Tables } from "./tables.js";
import { installTheme } from "./theme.js";

const HISTORY = 400; // samples that are kept, for an hour of them
const NARROW = matchMedia("(max-width: 60rem)");

const state = {
  connection: { state: "connecting", text: "Connecting" },
  overview: null,
  skew: 0, // seconds that the relay's clock is ahead of this one
  heard: 0, // when the overview came, by this clock
  room: null, // a Room
  missing: false, // there is no room of this name
  selection: { room: null, peer: null, link: null },
  history: [],
  table: false,
};

const dirty = new Set();

/** Has these parts drawn with the next frame. */
function changed(...parts) {
  if (!dirty.size) requestAnimationFrame(draw);
  for (const part of parts) dirty.add(part);
}

const now = () => Date.now() / 1000 + state.skew;

// --- what is chosen --------------------------------------------------------------------------------

/** Chooses in this room, or another one. What is not named is not chosen. */
function select({ room = state.selection.room, peer = null, link = null }, { reveal = true } = {}) {
  const another = room !== state.selection.room;
  state.selection = { room, peer: link ? null : peer, link };
  if (another) {
    state.room = null;
    state.missing = false;
    live.watch(room);
  }
  const hash = new URLSearchParams(Object.entries({ room, peer: state.selection.peer, link: link && JSON.stringify(link) }).filter(([, value]) => value));
  history.replaceState(null, "", hash.size ? `#${hash}` : location.pathname);
  changed("rooms", "mesh", "detail", "activity");
  // Where the panels stand one below the other, what was chosen is out of sight.
  if (reveal && NARROW.matches && (peer || link)) byId("detail").scrollIntoView({ block: "start" });
  else if (reveal && NARROW.matches && another) byId("mesh").scrollIntoView({ block: "start" });
}

/** What the address says; another address, another choice. */
function selectByAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  if (!hash.get("room")) return;
  let link = null;
  try {
    link = JSON.parse(hash.get("link"));
  } catch {
    // somebody wrote it by hand
  }
  if (!Array.isArray(link) || link.length !== 2 || !link.every((id) => typeof id === "string")) link = null;
  select({ room: hash.get("room"), peer: hash.get("peer"), link }, { reveal: false });
}

// --- what the relay tells --------------------------------------------------------------------------

function take(message, first) {
  switch (message.type) {
    case "overview":
      state.overview = message;
      state.heard = Date.now() / 1000;
      state.skew = message.now - state.heard;
      if (state.selection.room === null && message.rooms.length) {
        select({ room: message.rooms[0].roomId }, { reveal: false });
      } else if (state.selection.room === null) changed("mesh", "detail"); // there is none to wait for
      changed("figures", "rooms", "top");
      break;
    case "room":
      if (message.roomId !== state.selection.room) break; // of the one before
      state.room = message.room && new Room(message.room);
      state.missing = !message.room;
      changed("mesh", "detail", "activity"); // which says names
      break;
    case "activity":
      activity.add(message.entries, first);
      changed("activity", "detail");
      break;
    case "history":
      state.history = [...(first ? [] : state.history), ...message.samples].slice(-HISTORY);
      changed("history");
      break;
  }
}

const live = new Live((connection) => {
  state.connection = connection;
  changed("top");
}, take);

// --- views -----------------------------------------------------------------------------------------

const onPeer = (peer) => select({ peer });
const onLink = (a, b) => select({ link: [a, b] });
const actions = new Actions(live);
const figures = new Figures();
const rooms = new Rooms({ onRoom: (room) => select({ room }), onChange: () => changed("rooms") });
const graph = new Graph(byId("graph"), { onPeer, onLink });
const tables = new Tables(byId("tables"), { onPeer, onLink });
const detail = new Detail(actions, select);
const activity = new Activity({
  onEntry: ({ roomId, peerId, otherPeerId }) => select({ room: roomId, peer: peerId ?? null, link: peerId && otherPeerId ? [peerId, otherPeerId] : null }),
  onChange: () => changed("activity"),
});
drawLegend(byId("legend"));

function draw() {
  const parts = new Set(dirty);
  dirty.clear();
  const { overview, room, selection } = state;
  if (parts.has("top")) drawTop();
  if (parts.has("figures")) figures.update(overview);
  if (parts.has("history")) figures.draw(state.history, now());
  if (parts.has("rooms")) rooms.update(overview, selection.room);
  if (parts.has("mesh")) drawMesh();
  if (parts.has("detail")) {
    const info = overview?.rooms.find((each) => each.roomId === selection.room);
    detail.update({ room, selection, activity, now: now(), info });
  }
  if (parts.has("activity")) activity.update(selection.room, room);
}

function drawTop() {
  const { state: at, text, retryAt } = state.connection;
  const wait = retryAt && Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  setAttribute(byId("connection").parentElement, "data-state", at);
  const stale = at !== "live" && state.overview !== null;
  setText(byId("connection"), text);
  setHidden(byId("as-of"), !stale);
  if (stale) setText(byId("as-of"), `as of ${time(state.overview.now)}`);
  setHidden(byId("again"), at === "live" || at === "connecting");
  setText(byId("again"), at === "refused" ? "Sign in again" : `Try now${wait ? ` (${wait} s)` : ""}`);
  setClass(document.body, "stale", stale);
  setText(byId("host"), location.host);
  const relay = state.overview?.relay;
  setText(byId("version"), relay ? `version ${relay.version}` : "");
  setText(byId("uptime"), relay ? `up ${long(relay.uptime + (at === "live" ? Date.now() / 1000 - state.heard : 0))}` : "");
}

function drawMesh() {
  const { room, selection, table } = state;
  setNames(byId("mesh-title"), [selection.room ?? "Mesh"]);
  setText(byId("mesh-count"), room ? `${counted(room.members.length, "member")}, ${room.cut ? "over " : ""}${counted(room.links.length, "link")}` : "");
  setHidden(byId("graph"), table || !room);
  setHidden(byId("tables"), !table || !room);
  setHidden(byId("legend"), table || !room);
  setAttribute(byId("as-graph"), "aria-pressed", !table);
  setAttribute(byId("as-table"), "aria-pressed", table);
  const note = byId("mesh-note");
  setHidden(note, !room?.cut);
  setText(note, room?.cut ? `The relay tells of ${count(room.links.length)} links of this room: those that are not connected, those over the relay, and some of the others.` : "");
  if (table) tables.update(room, selection, now());
  else graph.update(room, selection);
  const empty = byId("mesh-empty"), [why, how] = empty.children;
  setHidden(empty, room !== null);
  const nobody = selection.room === null ? state.overview !== null : state.missing;
  const here = selection.room === null ? "at this relay" : "in this room";
  setText(why, nobody ? `Nobody is ${here}.` : selection.room === null ? "Waiting for the relay." : "Waiting for this room.");
  setHidden(how, !nobody || selection.room !== null);
  setText(how.lastChild, `meshpeer chat lobby --relay ${location.protocol === "https:" ? "wss" : "ws"}://${location.host}`);
}

for (const [id, table] of [["as-graph", false], ["as-table", true]]) {
  byId(id).addEventListener("click", () => {
    state.table = table;
    changed("mesh");
  });
}
byId("again").addEventListener("click", () => {
  // A page that is loaded anew makes the browser ask for the password; a request need not.
  if (state.connection.state === "refused") location.reload();
  else live.again();
});
addEventListener("hashchange", selectByAddress);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]") && event.target.tagName !== "INPUT" && (state.selection.peer || state.selection.link)) select({});
});

// --- off it goes -----------------------------------------------------------------------------------

document.title = `${location.host} – meshpeer relay`;
installTheme(byId("theme"));
setInterval(() => changed("top", "detail"), 1000); // what says how long ago something was
selectByAddress();
changed("top", "mesh", "detail", "activity");
live.again();
