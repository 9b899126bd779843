// What goes wrong, in words for who reads it. The client's own texts are for who writes programs; the
// diagnostics have them.

import { el } from "../common/dom.js";

const REFUSED = new Map([
  ["peer_id_taken", "Another tab or window has this seat."],
  ["room_full", "The room is full."],
  ["too_many_rooms", "The relay has no place for another room just now."],
  ["rate_limited", "That was too often in a short time. Wait a little, then try again."],
  ["unsupported_version", "This page and the relay are of different versions. Load the page again."],
]);
const MAX_WHY = 500; // characters of what another says to it
const TOKEN_CODES = new Set(["unauthorized", "forbidden"]);
const ENDED = new Map([
  ["IdentityReplaced", "Another tab or window has taken over your seat."],
  ["Removed", "The operator of the relay has removed you."],
]);
const FILES = new Map([
  ["PeerClosed", "they are gone"],
  ["Undelivered", "they are gone"],
  ["MeshClosed", "you are out of the room"],
  ["IdentityReplaced", "you are out of the room"],
  ["Removed", "you are out of the room"],
  ["ConfigError", "a file can't be sent by this name"],
  ["NotReadableError", "the file can't be read any more"],
  ["NotFoundError", "the file can't be read any more"],
  ["QuotaExceededError", "there is no room for it on this device"],
]);

/** The beginning of a text that may be longer than anybody reads. */
export const cut = (text, most) => (text.length > most ? `${text.slice(0, most)}…` : text);

/** Whether another join token may help. */
export const isLocked = (error) => TOKEN_CODES.has(error.code);

/** Why one is not in the room. */
export function whyOut(error) {
  if (isLocked(error)) return `The relay says: ${error.message}.`; // its operator's words, for people
  if (error?.name === "SignalingUnavailable") {
    if (navigator.onLine === false) return "This device is offline.";
    return "The relay can't be reached: it may be down, or the network between. The diagnostics say more.";
  }
  return REFUSED.get(error?.code) ?? ENDED.get(error?.name) ?? "Something went wrong. The diagnostics say more.";
}

/** Why a message is not known to have arrived, for a list of those it went to. */
export function whyNotDelivered(error) {
  if (error.name === "Undelivered" || error.name === "PeerClosed") return "left before it arrived";
  if (error.name === "MessageTooLarge") return "takes no message of this length";
  return "not delivered";
}

/** Why a file was not sent or received: words of the page, or those of the other side, set apart. */
export function whyNoFile(error) {
  if (error.name !== "TransferFailed") return FILES.get(error.name) ?? "something went wrong";
  if (error.message.includes("SHA-256")) return "what arrived is not what was sent";
  return el("bdi", {}, cut(error.message, MAX_WHY));
}
