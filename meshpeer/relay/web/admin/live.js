// The WebSocket that keeps this page up to date. It is made again whenever it is gone, each time with
// a fresh ticket: only somebody who is signed in gets one, and each is good for one socket.

const SESSION = "/api/admin/session"; // with the origin: an address with a password in it can't be fetched from
const LIVE = "/api/admin/live";
const FIRST = 500; // milliseconds until it tries again; doubles up to LONGEST
const LONGEST = 10_000;
const TO_SIGN_IN = 60_000; // for a ticket: the browser may have to ask for the password first
const PATIENCE = 10_000; // for the first word
const SILENCE = 12_000; // the relay says something every 5 s
const MALFORMED = 4400, NO_TICKET = 4401, TOO_MANY = 4429;

/**
 * `onState({ state, text, retryAt })`, where `state` is connecting, live, lost, again
 * (connecting, after it was lost) or refused, which does not try again by itself. `onMessage(message, first)`: `first` is the first of its type since
 * the connection was made, which replaces what was known.
 */
export class Live {
  #onState;
  #onMessage;
  #socket = null;
  #seen = new Set();
  #heard = 0;
  #delay = FIRST;
  #timer = null;
  #room = null;
  #asked = new Map(); // actions without an answer, by their number
  #last = 0;
  #trying = false;
  live = false;

  constructor(onState, onMessage) {
    this.#onState = onState;
    this.#onMessage = onMessage;
    setInterval(() => this.#watch(), 2000);
    addEventListener("online", () => this.again());
    // Timers hardly run in the background; who looks again should not wait for one.
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#timer !== null) this.again();
    });
  }

  /** Connects, at once if it waits for the next try. */
  again() {
    if (this.#trying || this.live) return;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#connect();
  }

  /** Has the relay tell about this room, and no other. */
  watch(room) {
    if (room === this.#room) return;
    this.#room = room;
    this.#send({ type: "watch", room });
  }

  /** Resolves with what came of it, `{ ok, text }`, and never rejects. */
  act(action, about) {
    if (!this.live) return Promise.resolve({ ok: false, text: "Not connected to the relay: nothing was asked of it." });
    const id = ++this.#last;
    this.#send({ type: "act", id, action, ...about });
    return new Promise((resolve) => this.#asked.set(id, resolve));
  }

  async #connect() {
    this.#trying = true;
    this.#onState({ state: this.#delay > FIRST ? "again" : "connecting", text: "Connecting" });
    try {
      const answer = await fetch(location.origin + SESSION, { cache: "no-store", signal: AbortSignal.timeout(TO_SIGN_IN) });
      if (answer.status === 401) {
        // Trying again by itself would use up the attempts that this address has.
        this.#trying = false;
        this.#onState({ state: "refused", text: "Signed out: the relay does not know this password" });
        return;
      }
      if (!answer.ok) {
        const wait = Number(answer.headers.get("Retry-After")) * 1000;
        const text = answer.status === 429 ? "Too many attempts from this address" : `The relay answers ${answer.status}`;
        this.#lost(text, wait);
        return;
      }
      this.#open((await answer.json()).ticket);
    } catch {
      this.#lost("The relay does not answer");
    }
  }

  #open(ticket) {
    const socket = (this.#socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${LIVE}`));
    this.#seen.clear();
    this.#heard = Date.now();
    socket.onopen = () => {
      this.#send({ type: "hello", ticket });
      if (this.#room !== null) this.#send({ type: "watch", room: this.#room });
    };
    socket.onmessage = ({ data }) => {
      this.#heard = Date.now();
      const message = JSON.parse(data);
      if (!this.live) {
        this.live = true;
        this.#trying = false;
        this.#delay = FIRST;
        this.#onState({ state: "live", text: "Live" });
      }
      if (message.type === "done") {
        this.#asked.get(message.id)?.(message);
        this.#asked.delete(message.id);
        return;
      }
      const first = !this.#seen.has(message.type);
      this.#seen.add(message.type);
      this.#onMessage(message, first);
    };
    socket.onclose = ({ code, reason }) => {
      const why = {
        [MALFORMED]: `The relay did not understand this page: ${reason}. Reload it`,
        [NO_TICKET]: "The relay did not take the ticket",
        [TOO_MANY]: "Too many dashboards are open at this relay",
      }[code];
      this.#lost(why ?? (this.live ? "Connection to the relay lost" : "The relay does not answer"), why && LONGEST);
    };
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** A connection may be gone without a word. */
  #watch() {
    if (this.#socket && Date.now() - this.#heard > (this.live ? SILENCE : PATIENCE)) {
      this.#lost(this.live ? "Nothing heard from the relay" : "The relay does not answer");
    }
  }

  #lost(text, wait = 0) {
    if (this.#socket) {
      this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
      this.#socket.close();
      this.#socket = null;
    }
    this.live = this.#trying = false;
    for (const resolve of this.#asked.values()) {
      resolve({ ok: false, text: "The connection was lost before the relay answered. The activity shows whether it was done." });
    }
    this.#asked.clear();
    // Spread, or every page comes back to a relay in the same moment.
    const delay = Math.max(wait || 0, this.#delay * (0.5 + Math.random() / 2));
    this.#delay = Math.min(this.#delay * 2, LONGEST);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#connect();
    }, delay);
    this.#onState({ state: "lost", text, retryAt: Date.now() + delay });
  }
}
