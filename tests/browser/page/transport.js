// A seat at the relay from a page, for tests/browser/test_transport.py: a RelayTransport, and what it
// told. `client` is what the client exports.

/** What Session takes of the settings; the waits are short. */
const CONFIG = { signalingRetryFirst: 0.05, signalingRetryMax: 1, maxPendingSignals: 1000 };

export class Station {
  /** What happened, oldest first; the welcomes as well. @type {any[]} */
  told = [];
  #client;
  /** @type {(() => void)[]} */
  #waiting = [];

  /**
   * @param {any} client
   * @param {string} url
   * @param {{[name: string]: any}} [options] of the transport
   */
  constructor(client, url, options = {}) {
    this.#client = client;
    this.transport = new client.RelayTransport(url, {
      config: CONFIG,
      onEvent: (/** @type {any} */ event) => this.tell(event),
      onEnd: (/** @type {any} */ { name, message }) => this.tell({ kind: "Ended", name, text: message }),
      ...options,
    });
  }

  /** @param {any} event */
  tell(event) {
    this.told.push(event);
    for (const resume of this.#waiting.splice(0)) resume();
  }

  /**
   * Takes a seat; what refuses that, by name and text.
   * @param {{[name: string]: any}} join
   * @param {AbortSignal | null} [signal]
   */
  async open(join, signal = null) {
    const rest = { name: null, metadata: {}, onConflict: "reject", token: null, session: null };
    const incarnation = crypto.getRandomValues(new Uint32Array(4)).join("-");
    const whole = { kind: "Join", version: 1, room: "lobby", incarnation, received: 0, attempt: 0, joinToken: null };
    try {
      const welcome = await this.transport.open({ ...whole, ...rest, ...join }, signal);
      this.tell(welcome);
      return welcome;
    } catch (error) {
      const { name, message } = /** @type {Error} */ (error);
      return { kind: "Failed", name, text: message };
    }
  }

  /**
   * As a manager does it: in the seat of an earlier page of this tab, if there was one.
   * @param {{[name: string]: any}} [join]
   * @param {string | null} [peerId]
   */
  async sit(join = {}, peerId = null) {
    const began = performance.now();
    this.seat = await this.#client.takeSeat(`${this.transport.url} lobby`, { peerId });
    this.took = performance.now() - began;
    const id = this.seat.peerId ?? `random-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    const welcome = await this.open({ peerId: id, token: this.seat.resumeToken, ...join });
    if (welcome.kind === "Welcome") this.seat.keep(welcome.token, welcome.peerId);
    return welcome;
  }

  /**
   * So many events of a kind, past or to come, with these values.
   * @param {string} kind
   * @param {{[name: string]: any}} [values]
   * @param {number} [count]
   */
  async until(kind, values = {}, count = 1) {
    for (;;) {
      const found = this.told.filter(
        (each) => each.kind === kind && Object.entries(values).every(([name, value]) => each[name] === value),
      );
      if (found.length >= count) return found;
      await new Promise((/** @type {(value?: any) => void} */ resume) => this.#waiting.push(resume));
    }
  }

  /** Why it did not get a seat so far: the text of the first failure. */
  async failure() {
    while (!this.transport.lastFailure) await new Promise((resolve) => setTimeout(resolve, 5));
    return this.transport.lastFailure.message;
  }

  /**
   * @param {any} welcome of the addressee
   * @param {any} body
   */
  signal({ peerId, incarnation }, body) {
    this.transport.send({
      kind: "SignalOut",
      to: peerId,
      toIncarnation: incarnation,
      epoch: 1,
      body: JSON.stringify(body),
    });
  }

  /** The bodies of the signals that came. */
  get bodies() {
    return this.told.filter(({ kind }) => kind === "SignalIn").map(({ body }) => JSON.parse(body));
  }

  /**
   * Sends so many numbered frames to a member, as fast as they are taken.
   * @param {any} welcome of the addressee
   * @param {number} count
   * @param {number} size
   */
  async pour({ peerId, incarnation }, count, size) {
    for (let number = 0; number < count; number++) {
      while (this.transport.forwardRoom(peerId) < size) {
        const seen = this.told.filter(({ kind }) => kind === "ForwardRoom").length;
        await this.until("ForwardRoom", { peerId }, seen + 1);
      }
      const frame = new Uint8Array(size);
      new DataView(frame.buffer).setUint32(0, number);
      this.transport.forward(peerId, incarnation, frame);
    }
  }

  /** The numbers of the frames that came. */
  get frames() {
    const frames = this.told.filter(({ kind }) => kind === "FrameIn");
    return frames.map(({ data }) => new DataView(data.buffer, data.byteOffset).getUint32(0));
  }
}
