// Names and rooms: what the relay takes, and where somebody was.

import { keep, recall } from "./storage.js";

const MAX_LABEL = 128;
const MAX_RECENT = 6;
// No control characters, nothing that turns the direction of text: see docs/protocol.md.
const BAD = /[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/u;

/** Why it can't be a name, or null. `what`: "A name", "A room". */
export function labelError(what, text) {
  if (text === "") return null;
  if (text === "." || text === "..") return `${what} has more than dots.`; // a browser takes them for directories
  if (BAD.test(text)) return `${what} has no control characters.`;
  if ([...text].length > MAX_LABEL) return `${what} has ${MAX_LABEL} characters at most.`;
  return null;
}

/** The path of a room's chat. */
export const roomPath = (room) => `/chat/${encodeURIComponent(room)}`;

/** The room of such a path, or null. */
export function pathRoom(path) {
  try {
    return decodeURIComponent(path.replace(/^\/chat\//, ""));
  } catch {
    return null; // somebody wrote it by hand
  }
}

export const recallName = () => recall("local", "name") ?? "";
export const keepName = (name) => keep("local", "name", name || null);

/** Rooms, the latest first. */
export function recentRooms() {
  try {
    const rooms = JSON.parse(recall("local", "rooms") ?? "[]");
    return Array.isArray(rooms) ? rooms.filter((room) => typeof room === "string" && room && !labelError("", room)).slice(0, MAX_RECENT) : [];
  } catch {
    return []; // somebody else wrote it
  }
}

export function keepRoom(room) {
  const rooms = [room, ...recentRooms().filter((each) => each !== room)].slice(0, MAX_RECENT);
  keep("local", "rooms", JSON.stringify(rooms));
}
