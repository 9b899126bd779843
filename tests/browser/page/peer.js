// A peer to test against: what docs/protocol.md asks of one, in the words of that page, and a stream
// of numbered messages. It is no client for applications: its messages have one part, on the channel
// "default"; it does not send or receive data through the relay; and it begins no ICE restart of its
// own accord.
//
// `tell`, which the test gives to the page, takes facts about what happens, each with its time.
"use strict";

const PARTS = 0x11, RESUME = 0x12, START = 0x13, OPEN = 0x14, ACK = 0x15, PING = 0x16, PONG = 0x17, BYE = 0x18;
const ASK = 1;
const WHOLE_TEXT = 0x07; // the flags of a part that is all of a plain text
const MAX_PART = 16384, OVERHEAD = 128, WINDOW = 1 << 24;
const CHANNEL = "default"; // the only one, so its number is 0
const ACK_EVERY = 16;
const COME_BACK = 500; // milliseconds
const REPLACED = 4001, SUPERSEDED = 4002, REFUSED = 4003;

/** Seconds since the epoch, on the clock that Python's time.time() reads as well. */
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const note = (what, facts = {}) => tell({ what, at: now(), ...facts });
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

/** What arrived of a stream of messages 0, 1, 2, …: exactly once and in order, or not. */
class Numbers {
  arrivals = [];
  repeated = 0;
  reordered = 0;
  #missing = new Set();
  #next = 0;
  #waiting = { count: Infinity, resolve: null };

  take(number) {
    this.arrivals.push(now());
    if (this.arrivals.length === this.#waiting.count) this.#waiting.resolve();
    if (number >= this.#next) {
      for (; this.#next < number; this.#next++) this.#missing.add(this.#next);
      this.#next++;
    } else if (this.#missing.delete(number)) {
      this.reordered++;
    } else {
      this.repeated++;
    }
  }

  /** Resolves when so many have arrived. */
  async reached(count) {
    if (this.arrivals.length < count) await new Promise((resolve) => (this.#waiting = { count, resolve }));
  }

  report() {
    return { arrivals: this.arrivals, next: this.#next, lost: this.#missing.size, repeated: this.repeated, reordered: this.reordered };
  }
}

/** Part 1: a seat in a room, kept when its socket drops. */
class Seat {
  incarnation = random();
  links = new Map();
  #socket = null;
  #joined = false;
  #token = random();
  #session = null;
  #attempt = 0;
  #received = 0; // counted messages of this session that arrived here
  #acknowledged = 0; // and of ours that arrived there
  #waiting = []; // ours that are not acknowledged

  constructor(url, room, id, trickle) {
    Object.assign(this, { url, room, id, trickle });
    this.#open();
  }

  signal(link, body) {
    const message = { type: "signal", to: link.id, to_incarnation: link.incarnation, epoch: link.epoch, body };
    this.#waiting.push(message);
    if (this.#joined) this.#send(message);
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #open() {
    const socket = (this.#socket = new WebSocket(this.url));
    socket.onopen = () => this.#send({
      type: "join", version: 1, room: this.room, peer_id: this.id, incarnation: this.incarnation,
      token: this.#token, session: this.#session, received: this.#received, attempt: ++this.#attempt,
    });
    socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    socket.onclose = (event) => {
      this.#joined = false;
      note("socket closed", { code: event.code });
      if (![REPLACED, SUPERSEDED, REFUSED].includes(event.code)) setTimeout(() => this.#open(), COME_BACK);
    };
  }

  #take(message) {
    if (["joined", "left", "updated", "signal", "refused"].includes(message.type) && this.#joined) {
      if (++this.#received % ACK_EVERY === 0) this.#send({ type: "ack", received: this.#received });
    }
    switch (message.type) {
      case "welcome":
        this.#forget(message.received ?? 0);
        if (!message.resumed) this.#received = this.#acknowledged = 0;
        this.#session = message.session;
        this.#joined = true;
        note("welcome", { resumed: message.resumed ?? false });
        // Somebody who is missing in a welcome that is not resumed may be on the way back: kept.
        for (const member of message.members ?? []) this.#meet(member);
        for (const unsaid of this.#waiting) this.#send(unsaid);
        break;
      case "joined":
        this.#meet(message.member);
        break;
      case "left":
        this.#part(message.peer_id, message.incarnation);
        break;
      case "signal": {
        const link = this.links.get(message.from);
        if (link?.incarnation !== message.incarnation) break;
        if (message.to_incarnation === this.incarnation) link.take(message.epoch, message.body);
        else this.signal({ ...link, epoch: 0 }, { type: "stale", incarnation: this.incarnation, epoch: link.epoch });
        break;
      }
      case "ack":
        this.#forget(message.received);
        break;
      case "refused":
        // Somebody who has just left may still be told something.
        if (message.code !== "no_such_peer") note("error", { text: `refused: ${message.code} ${message.text}` });
    }
  }

  #forget(received) {
    this.#waiting.splice(0, received - this.#acknowledged);
    this.#acknowledged = received;
  }

  #meet(member) {
    const known = this.links.get(member.peer_id);
    if (known?.incarnation === member.incarnation) return;
    known?.close();
    this.links.set(member.peer_id, new Link(this, member));
  }

  #part(id, incarnation) {
    const link = this.links.get(id);
    if (link?.incarnation !== incarnation) return;
    link.close();
    this.links.delete(id);
    note("left", { peer: id });
  }
}

/** Part 2: one other incarnation; a connection for each epoch, and within it one ICE generation after another. */
class Link {
  epoch = 0;
  connection = null;
  numbers = new Numbers();
  delivery = new Delivery(this.numbers);
  #sent = 0;
  #streaming = null;
  #early = []; // candidates that overtook their description
  #queue = Promise.resolve();

  constructor(seat, member) {
    Object.assign(this, { seat, id: member.peer_id, incarnation: member.incarnation });
    this.dials = seat.id < this.id;
    if (this.dials) this.#do(() => this.#dial());
  }

  take(epoch, body) {
    this.#do(() => this.#handle(epoch, body));
  }

  restart() {
    this.#do(async () => {
      const connection = this.connection;
      connection.pc.restartIce();
      await this.#offer(connection, connection.next());
    });
  }

  /** Sends a numbered message every so many milliseconds. */
  stream(interval) {
    this.#streaming = setInterval(() => this.delivery.send(String(this.#sent++)), interval);
  }

  /** Ends it, and returns how many there were. */
  stop() {
    clearInterval(this.#streaming);
    return this.#sent;
  }

  close() {
    this.connection?.pc.close();
    this.connection = null;
  }

  /** Operations on a connection run one after another; one that meets the end of the link has no say. */
  #do(operation) {
    this.#queue = this.#queue.then(operation).catch((error) => {
      if (this.connection) note("error", { text: String(error.stack ?? error) });
    });
  }

  #connect(epoch) {
    this.close();
    this.epoch = epoch;
    this.connection = new Connection(this);
    return this.connection;
  }

  async #dial() {
    await this.#offer(this.#connect(this.epoch + 1), 0);
  }

  async #offer(connection, generation) {
    const offer = await connection.pc.createOffer({ iceRestart: generation > 0 });
    const sdp = await connection.describe(offer, generation);
    note("offered", { peer: this.id, epoch: this.epoch, generation });
    this.seat.signal(this, { type: "offer", sdp, generation });
  }

  async #handle(epoch, body) {
    const generation = body.generation ?? 0;
    const known = epoch === this.epoch && this.connection !== null;
    switch (body.type) {
      case "offer":
        if (generation === 0 && epoch > this.epoch) await this.#answer(this.#connect(epoch), body.sdp, 0);
        else if (epoch < this.epoch) this.seat.signal(this, { type: "stale", incarnation: this.seat.incarnation, epoch: this.epoch });
        else if (known && this.connection.wants(generation)) await this.#answer(this.connection, body.sdp, generation);
        break;
      case "answer":
        if (known && this.connection.awaits(generation)) {
          await this.connection.accept({ type: "answer", sdp: body.sdp }, generation);
          await this.#add(this.#early.splice(0));
        }
        break;
      case "candidates":
        await this.#add([{ epoch, generation, ...body }]);
        break;
      case "dial":
        if (!this.dials || epoch < this.epoch) break;
        this.epoch = epoch;
        await this.#dial();
        break;
      case "stale":
        if (!this.dials || body.incarnation !== this.incarnation) break;
        if (body.epoch > this.epoch || (body.epoch === this.epoch && this.connection?.awaits(0))) {
          this.epoch = body.epoch;
          await this.#dial();
        }
    }
  }

  async #answer(connection, sdp, generation) {
    note("offer", { peer: this.id, epoch: this.epoch, generation });
    // An offer of our own that waits for its answer is rolled back by this (RFC 8829, section 4.1.10.2).
    await connection.accept({ type: "offer", sdp }, generation);
    await this.#add(this.#early.splice(0));
    const answer = await connection.pc.createAnswer();
    const described = await connection.describe(answer, generation);
    this.seat.signal(this, { type: "answer", sdp: described, generation });
  }

  async #add(messages) {
    for (const message of messages) {
      const newer = message.epoch - this.epoch || message.generation - (this.connection?.agreed ?? -1);
      if (newer > 0) this.#early.push(message);
      if (newer !== 0) continue;
      for (const candidate of message.candidates ?? []) await this.connection.pc.addIceCandidate(candidate);
      if (message.end) await this.connection.pc.addIceCandidate();
    }
  }
}

/** An RTCPeerConnection with the message channel. */
class Connection {
  agreed = -1; // the newest generation that the other side has described
  #theirs = 0; // the newest that it offered
  #described = 0; // and that we described
  #generations = new Map(); // by the ufrag of our side

  constructor(link) {
    this.link = link;
    const pc = (this.pc = new RTCPeerConnection());
    pc.onicecandidate = ({ candidate }) => this.#found(candidate);
    pc.oniceconnectionstatechange = () => note("ice", { peer: link.id, state: pc.iceConnectionState });
    const channel = (this.channel = pc.createDataChannel("meshpeer", { negotiated: true, id: 0 }));
    channel.binaryType = "arraybuffer";
    channel.onopen = () => this.#opened();
    channel.onclose = () => note("closed", { peer: link.id });
    channel.onmessage = (event) => this.#frame(new Uint8Array(event.data));
  }

  // --- negotiation ---

  /** The number of a restart of ours: odd for who dials, even for the other, higher than any so far. */
  next() {
    const number = Math.max(this.agreed, this.#theirs, this.#described) + 1;
    return number % 2 === Number(this.link.dials) ? number : number + 1;
  }

  /** Whether to answer this offer. */
  wants(generation) {
    if (generation <= Math.max(this.agreed, this.#theirs)) return false;
    this.#theirs = generation;
    // Both restart at once: the smaller id's counts.
    return this.pc.signalingState !== "have-local-offer" || !this.link.dials;
  }

  /** Whether to take this answer. */
  awaits(generation) {
    return this.pc.signalingState === "have-local-offer" && generation === this.#described;
  }

  async describe(description, generation) {
    this.#described = generation;
    this.#generations.set(/^a=ice-ufrag:(.*?)\r?$/m.exec(description.sdp)[1], generation);
    if (!this.link.seat.trickle) return await gathered(this.pc, description);
    await this.pc.setLocalDescription(description);
    return description.sdp;
  }

  async accept(description, generation) {
    await this.pc.setRemoteDescription(description);
    this.agreed = generation;
  }

  #found(candidate) {
    if (this.pc.signalingState === "closed" || !this.link.seat.trickle) return;
    const generation = candidate ? this.#generations.get(candidate.usernameFragment) : this.#described;
    const last = candidate === null || candidate.candidate === "";
    this.link.seat.signal(this.link, { type: "candidates", candidates: last ? [] : [candidate], end: last, generation });
  }

  /** Closes it when so many frames have come, which are not looked at. */
  async lose(count) {
    await new Promise((resolve) => (this.channel.onmessage = () => --count === 0 && resolve()));
    this.pc.close();
  }

  // --- frames ---

  say(...bytes) {
    if (this.channel.readyState === "open") this.channel.send(new Uint8Array(bytes));
  }

  #opened() {
    const link = this.link;
    const ice = this.pc.sctp.transport.iceTransport;
    ice.onselectedcandidatepairchange = () => {
      const { local, remote } = ice.getSelectedCandidatePair();
      const generation = this.#generations.get(local.usernameFragment);
      note("selected", { peer: link.id, generation, local: local.candidate, remote: remote.candidate });
    };
    link.delivery.attach(this, ASK);
    note("open", { peer: link.id, epoch: link.epoch });
  }

  #frame(bytes) {
    const fields = new Fields(bytes);
    const type = fields.byte();
    const { delivery, id } = this.link;
    switch (type) {
      case PARTS:
        delivery.parts(this, fields);
        break;
      case RESUME:
        delivery.resume(this, fields);
        break;
      case START:
        delivery.start(this, fields);
        break;
      case OPEN:
        delivery.open(this, fields);
        break;
      case ACK:
        delivery.ack(fields);
        break;
      case PING: {
        const nonce = fields.number();
        delivery.acknowledge();
        if (nonce) this.say(PONG, ...number(nonce));
        break;
      }
      case PONG:
        fields.number();
        break;
      case BYE:
        note("bye", { peer: id });
        break;
      default:
        throw new Error(`a frame that this page does not take: ${type}`);
    }
    must(fields.done, "nothing follows the last field");
  }
}

/** Part 3: all messages between two incarnations, whatever connection they take. */
class Delivery {
  #in = null; // the connection that we want to receive on
  #round = 0;
  #started = false;
  #known = false; // whether the other side has named its channel
  #next = 0; // the part that is waited for
  #taken = 0; // what all before it were charged
  #out = null; // the connection that the other side wants to receive on
  #theirRound = 0;
  #waiting = []; // parts that are not acknowledged
  #acknowledged = { seq: 0, offset: 0 }; // where they begin
  #sent = { seq: 0, offset: 0 }; // and where those begin that were not sent on this connection
  #limit = 0;

  constructor(numbers) {
    this.numbers = numbers;
  }

  send(text) {
    this.#waiting.push(new TextEncoder().encode(text));
    this.#drain();
  }

  attach(connection, ask) {
    this.#in = connection;
    this.#started = false;
    connection.say(RESUME, ask, ...[++this.#round, MAX_PART, 1, WINDOW].flatMap(number), ...this.#limits());
  }

  resume(connection, fields) {
    const ask = fields.byte();
    const [round, , , window] = [fields.number(), fields.number(), fields.number(), fields.number()];
    const limits = fields.list(() => fields.limit());
    if (round <= this.#theirRound) return;
    this.#theirRound = round;
    this.#out = connection;
    this.#limit = Math.max(this.#limit, window);
    for (const limit of limits) this.#arrived(limit);
    if (ask && this.#in !== connection) this.attach(connection, 0);
    const { seq, offset } = (this.#sent = { ...this.#acknowledged });
    const name = new TextEncoder().encode(CHANNEL);
    connection.say(START, ...[round, 1, 0, seq, offset].flatMap(number), name.length, ...name);
    this.acknowledge();
    this.#drain();
  }

  start(connection, fields) {
    const round = fields.number();
    const channels = fields.list(() => [fields.number(), fields.number(), fields.number(), fields.name()]);
    if (connection !== this.#in || round !== this.#round || this.#started) return;
    this.#started = true;
    for (const [channel, seq, offset, name] of channels) {
      this.#meet(channel, name);
      // Nothing is given up here while both live.
      must(seq === this.#next && offset === this.#taken, "a start goes on where it should");
    }
  }

  open(connection, fields) {
    const [channel, name] = [fields.number(), fields.name()];
    if (connection === this.#in && this.#started) this.#meet(channel, name);
  }

  parts(connection, fields) {
    const counts = connection === this.#in && this.#started;
    while (!fields.done) {
      const [channel, seq, count] = [fields.number(), fields.number(), fields.number()];
      if (counts) must(this.#known && channel === 0 && seq <= this.#next, "parts come without a gap");
      for (let at = seq; at < seq + count; at++) {
        must(fields.byte() === WHOLE_TEXT, "a part is a text");
        const payload = fields.take(fields.number());
        if (!counts || at < this.#next) continue;
        this.#next++;
        this.#taken += payload.length + OVERHEAD;
        this.numbers.take(Number(new TextDecoder().decode(payload)));
      }
    }
    if (counts) this.acknowledge();
  }

  ack(fields) {
    for (const limit of fields.list(() => fields.limit())) this.#arrived(limit);
    this.#drain();
  }

  /** Says what has arrived, where the other side wants to hear it. */
  acknowledge() {
    if (this.#known) this.#out?.say(ACK, ...this.#limits());
  }

  #arrived([channel, next, limit]) {
    const begin = this.#acknowledged;
    must(channel === 0 && next <= begin.seq + this.#waiting.length, "what arrived was sent");
    for (const part of this.#waiting.splice(0, Math.max(0, next - begin.seq))) step(begin, part);
    // More than was sent on this connection: it arrived over the one before.
    if (begin.seq > this.#sent.seq) this.#sent = { ...begin };
    this.#limit = Math.max(this.#limit, limit);
  }

  #meet(channel, name) {
    must(channel === 0 && name === CHANNEL, "the only channel is the default one");
    this.#known = true;
  }

  #limits() {
    return (this.#known ? [1, 0, this.#next, this.#taken + WINDOW] : [0]).flatMap(number);
  }

  #drain() {
    if (this.#out === null) return;
    for (;;) {
      const part = this.#waiting[this.#sent.seq - this.#acknowledged.seq];
      if (part === undefined || this.#sent.offset + part.length + OVERHEAD > this.#limit) return;
      this.#out.say(PARTS, 0, ...number(this.#sent.seq), 1, WHOLE_TEXT, ...number(part.length), ...part);
      step(this.#sent, part);
    }
  }
}

/** Goes on behind a part. */
function step(place, part) {
  place.seq++;
  place.offset += part.length + OVERHEAD;
}

function must(so, what) {
  if (!so) throw new Error(`not so: ${what}`);
}

/** The bytes of a number: unsigned LEB128. Bit operations would cut it to 32 bits. */
function number(value) {
  const bytes = [];
  for (; value >= 0x80; value = Math.floor(value / 0x80)) bytes.push((value % 0x80) | 0x80);
  return [...bytes, value];
}

/** What a frame has, in order. */
class Fields {
  #at = 0;

  constructor(bytes) {
    this.bytes = bytes;
  }

  get done() {
    return this.#at === this.bytes.length;
  }

  take(size) {
    must(this.#at + size <= this.bytes.length, "a frame has all its fields");
    return this.bytes.subarray(this.#at, (this.#at += size));
  }

  byte() {
    return this.take(1)[0];
  }

  number() {
    for (let value = 0, scale = 1; ; scale *= 0x80) {
      const byte = this.byte();
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  }

  name() {
    return new TextDecoder().decode(this.take(this.byte()));
  }

  limit() {
    return [this.number(), this.number(), this.number()];
  }

  list(item) {
    return Array.from({ length: this.number() }, item);
  }
}

/** The other side of raw aiortc: descriptions with all candidates, and nothing but a data channel. */
class Raw {
  pc = new RTCPeerConnection();
  channel = this.pc.createDataChannel("raw", { negotiated: true, id: 0 });

  constructor() {
    this.channel.onopen = () => note("raw open");
  }

  async offer() {
    return await this.#describe(await this.pc.createOffer());
  }

  async answer(sdp) {
    await this.pc.setRemoteDescription({ type: "offer", sdp });
    return await this.#describe(await this.pc.createAnswer());
  }

  async accept(sdp) {
    await this.pc.setRemoteDescription({ type: "answer", sdp });
  }

  async #describe(description) {
    return { sdp: await gathered(this.pc, description), at: now() };
  }
}

/** Sets a local description, and returns it with all its candidates. */
async function gathered(pc, description) {
  const complete = new Promise((resolve) => {
    pc.onicegatheringstatechange = () => pc.iceGatheringState === "complete" && resolve();
  });
  await pc.setLocalDescription(description);
  await complete;
  return pc.localDescription.sdp;
}
