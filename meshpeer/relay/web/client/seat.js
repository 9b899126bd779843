// Who this page is in a room, so that a reload has its peer id back at once: kept in sessionStorage,
// which lives as long as the tab. See meshpeer/cli/seat.py for a process's idea of the same.
//
// A tab that is duplicated begins with a copy of that storage. So a page that lives marks its seat,
// and takes the mark off when it is unloaded: a page that finds one asks, over a BroadcastChannel,
// whether its holder lives. After a crash nobody answers.
//
// Nothing here needs a secure context: a page on a host of the local network has none.

/** Seconds that the holder of a seat has to say that it lives. */
export const SEAT_ANSWER_TIMEOUT = 0.2;
const SEAT_TOKEN = /^[\w-]{16,128}$/;

/**
 * What is stored of a seat. The token is a secret: whoever has it can take the id over.
 * @typedef {{peerId: string, resumeToken: string, mark: string | null}} StoredSeat
 */

/**
 * The seat that a page has. `peerId` and `resumeToken` are those of an earlier page in this tab, or
 * null; then `peerId` is what was asked for, where one was.
 * @typedef {object} Seat
 * @property {string | null} peerId
 * @property {string | null} resumeToken
 * @property {(resumeToken: string, peerId: string) => void} keep call it after each welcome
 * @property {() => void} putDown this page is done with it; a later one of this tab may have it
 * @property {() => void} release it is somebody else's, or given up for good: nothing is kept of it
 */

/** Names under which managers of this page keep their seats: each has its own. @type {Set<string>} */
const seatNames = new Set();

/**
 * The seat that an earlier page in this tab had at `key` (the relay's URL and the room), or a new one.
 * Who asks for an id has a seat of its own for it, in which the relay may have given it another one.
 *
 * Where storage is blocked or full nothing is kept, and that is no error. A seat is another tab's when
 * this tab was duplicated from that: then this is a new one, unless `peerId` asks for its id. Who asks
 * for an id gets the token as well, and takes the id over from the other tab.
 *
 * Takes 0.2 s when the earlier page was not unloaded in an orderly way, else no time.
 * @param {string} key
 * @param {object} [options]
 * @param {string | null} [options.peerId] the one that is asked for
 * @returns {Promise<Seat>}
 */
export async function takeSeat(key, { peerId = null } = {}) {
  const whole = peerId === null ? key : `${key}\n${peerId}`; // of which neither has a line break
  let name = `meshpeer seat ${whole}`;
  for (let number = 2; seatNames.has(name); number++) name = `meshpeer seat ${number} ${whole}`;
  seatNames.add(name);
  let stored = readSeat(name);
  if (stored?.mark && peerId === null && (await isSeatHeld(name, stored.mark))) stored = null;

  const mark = newSeatMark();
  /** @type {StoredSeat | null} */
  let seat = stored;
  /** @type {BroadcastChannel | null} */
  let channel = null;
  let isAway = false;
  const hold = () => {
    isAway = false;
    if (seat !== null) writeSeat(name, { ...seat, mark });
    channel ??= seatChannel(name);
    channel?.addEventListener("message", answer);
  };
  /** @param {MessageEvent} event */
  const answer = ({ data }) => {
    if (data?.asks === mark) channel?.postMessage({ lives: mark });
  };
  const letGo = () => {
    isAway = true;
    channel?.close();
    channel = null;
    if (seat !== null) writeSeat(name, { ...seat, mark: null });
  };
  // A page that is put away whole (bfcache) comes back with "pageshow".
  globalThis.addEventListener?.("pagehide", letGo);
  globalThis.addEventListener?.("pageshow", hold);
  hold();
  let isDone = false;
  const putDown = () => {
    if (isDone) return;
    isDone = true;
    globalThis.removeEventListener?.("pagehide", letGo);
    globalThis.removeEventListener?.("pageshow", hold);
    if (!isAway) letGo();
    seatNames.delete(name);
  };
  return {
    peerId: seat?.peerId ?? peerId,
    resumeToken: seat?.resumeToken ?? null,
    keep(resumeToken, peerId) {
      if (isDone) return;
      seat = { peerId, resumeToken, mark };
      if (!isAway) writeSeat(name, seat);
    },
    putDown,
    release() {
      if (isDone) return;
      seat = null;
      putDown();
      removeSeat(name);
    },
  };
}

/** A random text. crypto.randomUUID is for secure contexts only. */
function newSeatMark() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join(
    "",
  );
}

/**
 * Null where there is none: then no seat that is marked is taken for free.
 * @param {string} name
 */
function seatChannel(name) {
  try {
    return new BroadcastChannel(name);
  } catch {
    return null;
  }
}

/**
 * Whether a page lives that holds the seat.
 * @param {string} name
 * @param {string} mark
 * @returns {Promise<boolean>}
 */
function isSeatHeld(name, mark) {
  const channel = seatChannel(name);
  if (channel === null) return Promise.resolve(true);
  return new Promise((resolve) => {
    /** @param {boolean} isHeld */
    const settle = (isHeld) => {
      clearTimeout(patience);
      channel.close();
      resolve(isHeld);
    };
    const patience = setTimeout(() => settle(false), SEAT_ANSWER_TIMEOUT * 1000);
    channel.addEventListener("message", ({ data }) => {
      if (data?.lives === mark) settle(true);
    });
    channel.postMessage({ asks: mark });
  });
}

/**
 * @param {string} name
 * @returns {StoredSeat | null}
 */
function readSeat(name) {
  try {
    const { peerId, resumeToken, mark } = JSON.parse(sessionStorage.getItem(name) ?? "{}");
    if (typeof peerId !== "string" || !peerId || !SEAT_TOKEN.test(resumeToken)) return null;
    return { peerId, resumeToken, mark: typeof mark === "string" ? mark : null };
  } catch {
    return null; // blocked, or what is there is not ours
  }
}

/**
 * @param {string} name
 * @param {StoredSeat} seat
 */
function writeSeat(name, seat) {
  try {
    sessionStorage.setItem(name, JSON.stringify(seat));
  } catch {
    removeSeat(name); // blocked or full: what may be there is over
  }
}

/** @param {string} name */
function removeSeat(name) {
  try {
    sessionStorage.removeItem(name);
  } catch {
    // blocked: then nothing is there
  }
}
