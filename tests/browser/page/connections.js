// Two Connections in one page, each with an observer that keeps what it is told. `client` is the
// browser's client; every scenario returns what the test asks about, or throws.

/** An observer, the connection that tells it, and the signals between it and the other. */
class Side {
  told = [];
  frames = [];
  channels = [];
  answersPings = true;
  #bells = [];

  constructor(client, { servers = [] } = {}) {
    this.client = client;
    this.servers = servers;
    this.inside = 0;
    const tell =
      (what) =>
      (...facts) => {
        if (this.inside) this.told.push(["told from inside a call", what]);
        this.told.push([what, ...facts]);
        if (what === "candidatesFound") this.#candidates(...facts);
        if (what === "connectionOpened") this.connection.sendFrame(client.encodeFrame({ kind: "Ping", nonce: 0 }));
        if (what === "frameReceived") this.#frame(...facts);
        if (what === "channelOpened") this.#channel(...facts);
        for (const bell of this.#bells.splice(0)) bell();
      };
    const calls =
      "connectionOpened connectionLost frameReceived bufferLow channelOpened iceStateChanged candidatesFound serverReported pairSelected heard ponged pathLost";
    const observer = Object.fromEntries(calls.split(" ").map((name) => [name, tell(name)]));
    observer.iceServers = () => this.servers;
    this.connection = new client.Connection(observer);
  }

  /** The first that was told from `from` on and fits. */
  async until(what, fits = () => true, from = 0) {
    for (;;) {
      const found = this.told.slice(from).find(([name, ...facts]) => name === what && fits(...facts));
      if (found) return found.slice(1);
      await new Promise((resolve) => this.#bells.push(resolve));
    }
  }

  count(what) {
    return this.told.filter(([name]) => name === what).length;
  }

  /** A call that must not tell anything before it returns. */
  call(method, ...args) {
    this.inside++;
    try {
      return this.connection[method](...args);
    } finally {
      this.inside--;
    }
  }

  #held = new Map();
  #sent = new Set();

  #candidates(generation, candidates, end) {
    if (!this.#sent.has(generation))
      this.#held.set(generation, [...(this.#held.get(generation) ?? []), [candidates, end]]);
    else void this.peer.add(generation, candidates, end);
  }

  async add(generation, candidates, end) {
    try {
      await this.call("addCandidates", generation, candidates, end);
    } catch (error) {
      this.told.push(["refused", error]);
    }
  }

  /** The description was sent: candidates may follow. */
  sent(generation) {
    this.#sent.add(generation);
    for (const [candidates, end] of this.#held.get(generation) ?? []) void this.peer.add(generation, candidates, end);
    this.#held.delete(generation);
  }

  #frame(data) {
    if (data[0] === 0xff) {
      this.frames.push(data);
      return;
    }
    const frame = this.client.decodeFrame(data);
    if (frame.kind !== "Ping") throw new Error(`a ${frame.kind} that nobody sent`);
    if (frame.nonce && this.answersPings)
      this.connection.sendFrame(this.client.encodeFrame({ kind: "Pong", nonce: frame.nonce }));
  }

  #channel(channel) {
    const kept = { channel, got: [], closed: false };
    this.channels.push(kept);
    channel.listen({
      onOpen: () => {},
      onMessage: (data) => {
        kept.got.push(data);
        for (const bell of this.#bells.splice(0)) bell();
      },
      onLow: () => {},
      onClose: () => {
        kept.closed = true;
        for (const bell of this.#bells.splice(0)) bell();
      },
      low: 0,
    });
  }

  /** Waits until something is so. */
  async so(fits) {
    while (!fits()) await new Promise((resolve) => this.#bells.push(resolve));
  }
}

const ended = [];
const timers = [];
/** What undoes a change to the browser. */
const undone = [];

/** Puts something else in a property's place, until the scenario is over. */
function replaced(owner, name, descriptor) {
  const before = Object.getOwnPropertyDescriptor(owner, name);
  Object.defineProperty(owner, name, { configurable: true, ...descriptor });
  undone.push(() => Object.defineProperty(owner, name, before));
  return before;
}

/** `change` makes of the statistics of each connection, a Map, what it is told; it returns nothing. */
function statsReplaced(change) {
  const { value: getStats } = replaced(RTCPeerConnection.prototype, "getStats", {
    writable: true,
    async value(...args) {
      const all = new Map();
      (await getStats.apply(this, args)).forEach((each, id) => all.set(id, { ...each }));
      change(all);
      return all;
    },
  });
}

/**
 * As in a browser that does not say which pair is selected, nor, in the statistics, what an end is of.
 * With `state.hides` above 0, so often, they don't name a pair either; with `state.moved` they name
 * another one, with a relay.
 */
function quietPairs(state) {
  replaced(RTCIceTransport.prototype, "getSelectedCandidatePair", { value: undefined });
  statsReplaced((all) => {
    const transport = [...all.values()].find(({ type }) => type === "transport");
    for (const each of all.values()) {
      if (each.type === "local-candidate") delete each.usernameFragment;
    }
    const chosen = all.get(transport?.selectedCandidatePairId);
    if (!chosen) return;
    const local = { ...all.get(chosen.localCandidateId), id: "relay", candidateType: "relay" };
    all.set("relay", local);
    all.set("moved", { ...chosen, id: "moved", localCandidateId: "relay" });
    if (state.moved) transport.selectedCandidatePairId = "moved";
    if (state.hides-- > 0) delete transport.selectedCandidatePairId;
  });
}

function pair(client, options) {
  const [ann, bob] = [new Side(client, options), new Side(client, options)];
  [ann.peer, bob.peer] = [bob, ann];
  ended.push(ann, bob);
  return [ann, bob];
}

async function negotiate(from, to, generation) {
  const offer = await from.call("createOffer", generation);
  const answering = to.call("acceptOffer", generation, offer);
  from.sent(generation);
  const answer = await answering;
  to.sent(generation);
  await from.call("acceptAnswer", generation, answer);
}

async function connected(client, options) {
  const [ann, bob] = pair(client, options);
  await negotiate(ann, bob, 0);
  await Promise.all([ann.until("connectionOpened"), bob.until("connectionOpened")]);
  return [ann, bob];
}

/** Bytes with a number, which are no frame to anybody. */
const numbered = (client, number) => new Uint8Array([0xff, 0, ...new Uint8Array(new Uint32Array([number]).buffer)]);

/** Sends a numbered frame every two milliseconds, until the function that it returns is called. */
function streaming(client, from) {
  let sent = 0;
  const timer = setInterval(() => from.connection.sendFrame(numbered(client, sent++)), 2);
  timers.push(timer);
  return () => {
    clearInterval(timer);
    return sent;
  };
}

/** Whether these frames are the first so many, in order. */
const inOrder = (client, frames, count) => {
  const same = (frame, number) => {
    const expected = numbered(client, number);
    return frame.length === expected.length && frame.every((byte, at) => byte === expected[at]);
  };
  return frames.length === count && frames.every(same);
};

async function selected(generation, ...sides) {
  await Promise.all(sides.map((side) => side.until("pairSelected", (number) => number === generation)));
}

/** Pings until it is answered. */
async function pinged(side, nonce) {
  const from = side.told.length;
  side.call("ping", nonce);
  await side.until("ponged", (said) => said === nonce, from);
}

const failure = async (promise) => {
  try {
    await promise;
    return null;
  } catch (error) {
    return { name: error.name, code: error.code ?? null, text: error.message };
  }
};

const summary = (side) => ({
  ice: side.told.filter(([what]) => what === "iceStateChanged").map(([, state]) => state),
  opened: side.count("connectionOpened"),
  lost: side.told.filter(([what]) => what === "connectionLost").map(([, reason]) => reason),
  early: side.told
    .slice(
      0,
      side.told.findIndex(([what]) => what === "connectionOpened"),
    )
    .some(([what]) => what === "frameReceived"),
  inside: side.told.filter(([what]) => what === "told from inside a call"),
  generations: [...new Set(side.told.filter(([what]) => what === "pairSelected").map(([, generation]) => generation))],
  refused: side.told.filter(([what]) => what === "refused").map(([, error]) => error.message),
  found: side.told.filter(([what]) => what === "candidatesFound").map(([, generation, , end]) => [generation, end]),
});

export const scenarios = {
  async connects(client) {
    const [ann, bob] = await connected(client);
    await pinged(ann, 7);
    await pinged(bob, 2 ** 31 - 1);
    const order = ann.told
      .map(([what]) => what)
      .filter((what) => what === "pairSelected" || what === "connectionOpened");
    const [, chosen] = await ann.until("pairSelected");
    return { ann: summary(ann), bob: summary(bob), order, chosen, stats: await ann.connection.stats() };
  },

  async restarts(client) {
    const [ann, bob] = await connected(client);
    const stop = [streaming(client, ann), streaming(client, bob)];
    await negotiate(ann, bob, 1);
    await selected(1, ann, bob);
    await negotiate(bob, ann, 2);
    await selected(2, ann, bob);
    const [a, b] = stop.map((each) => each());
    await Promise.all([bob.so(() => bob.frames.length >= a), ann.so(() => ann.frames.length >= b)]);
    await pinged(ann, 1);
    return {
      ann: summary(ann),
      bob: summary(bob),
      whole: inOrder(client, bob.frames, a) && inOrder(client, ann.frames, b) && a > 5,
    };
  },

  /** Both begin one: bob's, which waits for its answer, gives way. */
  async bothRestart(client) {
    const [ann, bob] = await connected(client);
    const stop = streaming(client, bob);
    await bob.call("createOffer", 2);
    bob.sent(2); // to nobody: ann has not answered
    const offer = await ann.call("createOffer", 3);
    ann.sent(3);
    const answer = await bob.call("acceptOffer", 3, offer);
    bob.sent(3);
    await ann.call("acceptAnswer", 3, answer);
    await selected(3, ann, bob);
    const late = await failure(bob.call("acceptAnswer", 2, answer));
    await negotiate(bob, ann, 4);
    await selected(4, ann, bob);
    const count = stop();
    await ann.so(() => ann.frames.length >= count);
    return { ann: summary(ann), bob: summary(bob), late, whole: inOrder(client, ann.frames, count) };
  },

  /** Restarts that nobody answers change nothing, and later ones replace them. */
  async unanswered(client) {
    const [ann, bob] = await connected(client);
    await ann.call("createOffer", 1);
    await pinged(ann, 1);
    await pinged(bob, 1);
    await ann.call("createOffer", 3);
    await pinged(ann, 2);
    const before = [summary(ann).generations, summary(bob).generations];
    // One that arrived and can't be answered: as if it had not come.
    const offer = await ann.call("createOffer", 5);
    const broken = await failure(bob.call("acceptOffer", 5, offer.replace(/UDP\/DTLS\/SCTP/, "UDP/NONE/SCTP")));
    await pinged(bob, 3);
    await negotiate(ann, bob, 7);
    await selected(7, ann, bob);
    await pinged(ann, 4);
    return { ann: summary(ann), bob: summary(bob), before, broken };
  },

  /** Candidates that overtake the answer are kept for it; others are ignored or refused. */
  async candidates(client) {
    const [ann, bob] = pair(client);
    const offer = await ann.call("createOffer", 0);
    const answer = await bob.call("acceptOffer", 0, offer);
    ann.sent(0);
    await bob.until("candidatesFound", (generation, candidates) => candidates.length > 0);
    bob.sent(0);
    await ann.call("acceptAnswer", 0, answer);
    await Promise.all([ann.until("connectionOpened"), bob.until("connectionOpened")]);
    const good = (await bob.until("candidatesFound", (generation, candidates) => candidates.length > 0))[1][0];
    const add = (changed, generation = 0) =>
      failure(ann.call("addCandidates", generation, [{ ...good, ...changed }, good], false));
    return {
      ann: summary(ann),
      again: await add({}),
      other: await add({ candidate: `${good.candidate.replace(/ ufrag \S+/, "")} ufrag other` }),
      nonsense: await add({ candidate: "candidate:nonsense" }),
      port: await add({ candidate: good.candidate.replace(/ \d+ typ/, " 70000 typ") }),
      section: await add({ sdpMid: "9" }),
      plain: await add({ sdpMid: null, sdpMLineIndex: null }),
      empty: await add({ candidate: "" }),
      over: await add({ candidate: "candidate:nonsense" }, 1),
    };
  },

  async badDescriptions(client) {
    const [ann, bob] = await connected(client);
    const offer = await ann.call("createOffer", 1);
    const changed = (from, to) => failure(bob.call("acceptOffer", 1, offer.replace(from, to)));
    const first = new client.Connection(ann.connection);
    const found = {
      sections: await changed(/m=application/, "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\nm=application"),
      setup: await changed(/a=setup:\w+/, "a=setup:holdconn"),
      port: await changed(/a=sctp-port:\d+\r\n/, ""),
      ufrag: await changed(/a=ice-ufrag:\S+/, "a=ice-ufrag:abc"),
      bundle: await changed(/a=group:BUNDLE \S+/, "a=group:BUNDLE 0 1"),
      size: await changed(/a=max-message-size:\d+/, "a=max-message-size:1000"),
      fingerprint: await changed(/(a=fingerprint:sha-256 )(..)/, (_, head, two) => head + (two === "00" ? "01" : "00")),
      candidate: await changed(/$/, "a=candidate:1 1 udp 1 192.0.2.1 70000 typ host\r\n"),
      unbegun: await failure(first.acceptOffer(1, offer)),
    };
    await bob.call("acceptOffer", 1, offer);
    found.unchanged = await failure(bob.call("acceptOffer", 3, offer));
    await pinged(ann, 1);
    return { found, ann: summary(ann), bob: summary(bob) };
  },

  async plainChannels(client) {
    const [ann, bob] = await connected(client);
    const told = [];
    const opened = ann.call("openChannel", "loose", { ordered: false, maxRetransmits: 0 });
    await new Promise((resolve) =>
      opened.listen({
        onOpen: resolve,
        onMessage: (data) => told.push(data),
        onLow: () => {},
        onClose: () => told.push("closed"),
        low: 0,
      }),
    );
    opened.send("text");
    opened.send(new Uint8Array([1, 2, 3]).subarray(1));
    await bob.so(() => bob.channels[0]?.got.length === 2);
    const there = bob.channels[0].channel;
    const large = await failure((async () => opened.send(new Uint8Array(2 ** 20)))());
    const second = ann.call("openChannel", "strict");
    const wrong = await failure(
      (async () => ann.connection.openChannel("both", { maxRetransmits: 1, maxPacketLifeTime: 1 }))(),
    );
    await bob.so(() => bob.channels.length === 2);
    opened.close();
    await bob.so(() => bob.channels[0].closed);
    second.listen({
      onOpen: () => {},
      onMessage: () => {},
      onLow: () => {},
      onClose: () => told.push("second closed"),
      low: 0,
    });
    await ann.connection.close();
    await bob.so(() => bob.channels[1].closed);
    return {
      got: bob.channels[0].got.map((data) => (typeof data === "string" ? data : [...data])),
      label: there.label,
      lossy: [there.lossy, second.lossy],
      told,
      large,
      wrong,
      after: await failure((async () => second.send("late"))()),
      state: [opened.state, second.state],
      heard: bob.count("heard") > 0,
    };
  },

  /** Browsers count the connections that are not closed. */
  async closes(client) {
    const Pc = globalThis.RTCPeerConnection;
    const made = [];
    globalThis.RTCPeerConnection = class extends Pc {
      constructor(...args) {
        super(...args);
        made.push(this);
      }
    };
    try {
      const [ann, bob] = await connected(client);
      const bye = numbered(client, 0);
      ann.connection.sendFrame(bye);
      const from = ann.told.length;
      await ann.call("close");
      await ann.call("close");
      await bob.until("connectionLost");
      const heard = bob.frames.length;
      await bob.call("close");
      // One that is under way ends as well.
      const [cat, dan] = pair(client);
      const offering = failure(cat.call("createOffer", 0));
      await cat.call("close");
      const offered = await offering;
      const after = [await failure(cat.call("createOffer", 0)), await failure(cat.call("createOffer", 1))];
      cat.call("ping", 1);
      cat.call("sendFrame", bye);
      await dan.call("close");
      return {
        made: made.length,
        open: made.filter((pc) => pc.connectionState !== "closed").length,
        handlers: made.flatMap((pc) =>
          ["onicecandidate", "ondatachannel", "onconnectionstatechange"].filter((name) => pc[name]),
        ),
        // A candidate of bob's may be under way, and is refused: that the connection did not tell.
        told: ann.told.slice(from).flatMap(([what]) => (what === "refused" ? [] : [what])),
        heard,
        offered,
        after,
        bob: summary(bob),
      };
    } finally {
      globalThis.RTCPeerConnection = Pc;
    }
  },

  async blocked(client) {
    const Pc = globalThis.RTCPeerConnection;
    const found = [];
    try {
      const throws = function () {
        throw new DOMException("not here", "NotAllowedError");
      };
      for (const blocked of [undefined, throws]) {
        globalThis.RTCPeerConnection = blocked;
        const side = new Side(client);
        found.push(await failure(side.call("createOffer", 0)));
        side.call("ping", 1);
        found.push(side.connection.bufferedAmount, await side.connection.stats());
        await side.call("close");
      }
    } finally {
      globalThis.RTCPeerConnection = Pc;
    }
    const [ann] = await connected(client);
    return { found, ann: summary(ann) };
  },

  /** Servers that the browser does not take count for nothing, and those that don't answer are told. */
  async servers(client) {
    const server = (url, login = null) => ({ kind: "IceServer", urls: [url], username: login, credential: login });
    const servers = [server("http://nonsense"), server("turn:127.0.0.1:9"), server("stun:127.0.0.1:9")];
    const [ann] = await connected(client, { servers });
    const reports = ann.told.filter(([what]) => what === "serverReported").map(([, report]) => report);
    return { ann: summary(ann), reports };
  },

  /** Nobody answers pings, but the browser's own checks go on. */
  async checks(client) {
    const [ann, bob] = await connected(client);
    bob.answersPings = false;
    const from = ann.told.length;
    let nonce = 10;
    timers.push(setInterval(() => ann.call("ping", ++nonce), 250));
    await ann.until("heard", (answered) => answered, from);
    await ann.until("ponged", (said) => said > 10, from);
    const asked = bob.told.filter(([what]) => what === "frameReceived").length;
    return { asked, pinged: nonce - 10, ann: summary(ann) };
  },

  /** The buffer of the message channel stays full, as that of a slow path. */
  async stuck(client) {
    const [ann, bob] = await connected(client);
    bob.answersPings = false;
    const from = ann.told.length;
    replaced(RTCDataChannel.prototype, "bufferedAmount", { get: () => 4 * client.LOW_BUFFER });
    // What arrives at the other side is acknowledged, though nothing is said.
    streaming(client, ann);
    ann.call("ping", 1);
    const heard = () => ann.told.slice(from).filter(([what, answered]) => what === "heard" && answered).length;
    await ann.so(() => heard() >= 2);
    const isAsked = ([what, data]) => what === "frameReceived" && data[0] !== 0xff && client.decodeFrame(data).nonce;
    return { asked: bob.told.filter(isAsked).length, heard: heard(), ann: summary(ann) };
  },

  /** And nothing arrives at all. */
  async stuckAndDead(client) {
    const [ann] = await connected(client);
    let looks = 0;
    let enough = () => {};
    const looked = new Promise((resolve) => (enough = resolve));
    const pairs = new Map();
    statsReplaced((all) => {
      for (const [id, each] of all) {
        if (each.type === "candidate-pair") pairs.set(id, { ...each, ...pairs.get(id) });
        if (pairs.has(id)) all.set(id, pairs.get(id));
      }
      if (++looks === 4) enough();
    });
    replaced(RTCDataChannel.prototype, "bufferedAmount", { get: () => 4 * client.LOW_BUFFER });
    const from = ann.told.length;
    ann.call("ping", 1);
    await looked;
    const heard = ann.told.slice(from).filter(([what, answered]) => what === "heard" && answered).length;
    return { looks, heard, ann: summary(ann) };
  },

  /** A promise that never settles keeps something of each race that it was in. */
  async keeps(client) {
    const raced = new Map();
    const { value: race } = replaced(Promise, "race", {
      writable: true,
      value(promises) {
        for (const each of promises) raced.set(each, (raced.get(each) ?? 0) + 1);
        return race.call(this, promises);
      },
    });
    const [ann] = await connected(client);
    for (let time = 0; time < 20; time++) await ann.connection.stats();
    // What is under way when it is closed ends.
    const late = failure(ann.call("createOffer", 1));
    await ann.call("close");
    return { races: Math.max(...raced.values()), late: await late };
  },

  async forgets(client) {
    const Pc = globalThis.RTCPeerConnection;
    const made = [];
    replaced(globalThis, "RTCPeerConnection", {
      writable: true,
      value: class extends Pc {
        constructor(...args) {
          super(...args);
          made.push(this);
        }
      },
    });
    const ufrags = [];
    const [ann, bob] = await connected(client);
    const ufrag = () => /a=ice-ufrag:(\S+)/.exec(made[0].localDescription.sdp)[1];
    ufrags.push(ufrag());
    for (const generation of [1, 2]) {
      await negotiate(ann, bob, generation);
      await selected(generation, ann, bob);
      ufrags.push(ufrag());
    }
    const [, [good]] = await ann.until("candidatesFound", (generation, candidates) => candidates.length > 0);
    const from = ann.told.length;
    for (const usernameFragment of ufrags) {
      const candidate = good.candidate.replace(/ ufrag \S+/, ` ufrag ${usernameFragment}`);
      made[0].onicecandidate({ candidate: new RTCIceCandidate({ ...good, candidate, usernameFragment }) });
    }
    const told = ann.told.slice(from).filter(([what]) => what === "candidatesFound");
    return { ufrags: new Set(ufrags).size, told: told.map(([, generation]) => generation) };
  },

  async quietPairs(client) {
    const state = { hides: 12, moved: false };
    quietPairs(state);
    const [ann, bob] = await connected(client);
    await selected(0, ann);
    const hidden = 12 - Math.max(0, state.hides);
    bob.answersPings = false;
    const from = ann.told.length;
    state.moved = true;
    let nonce = 0;
    timers.push(setInterval(() => ann.call("ping", ++nonce), 250));
    const [generation, pair] = await ann.until("pairSelected", (_, { local }) => local.type === "relay", from);
    bob.answersPings = true;
    for (let answers = 0; answers < 4; answers++) await ann.until("ponged", () => true, ann.told.length);
    const back = ann.told.length;
    state.moved = false;
    const [, last] = await ann.until("pairSelected", (_, { local }) => local.type !== "relay", back);
    return { hidden, later: [generation, pair.local.type], last: last.local.type, ann: summary(ann) };
  },

  async quietRestart(client) {
    const state = { hides: 0, moved: false };
    quietPairs(state);
    const [ann, bob] = await connected(client);
    await selected(0, ann, bob);
    // Nobody's candidates are sent, so it checks nothing.
    const offer = await ann.call("createOffer", 1);
    const answer = await bob.call("acceptOffer", 1, offer);
    state.moved = true;
    await ann.call("acceptAnswer", 1, answer);
    const [generation, pair] = await ann.until("pairSelected", (_, { local }) => local.type === "relay");
    state.moved = false;
    ann.sent(1);
    bob.sent(1);
    await selected(1, ann);
    return { meanwhile: [generation, pair.local.type], ann: summary(ann) };
  },

  async fills(client) {
    const [ann, bob] = await connected(client);
    const frame = numbered(client, 0);
    let sent = 0;
    while (ann.connection.bufferedAmount <= 4 * client.LOW_BUFFER) {
      ann.call("sendFrame", frame);
      sent++;
    }
    await ann.until("bufferLow");
    const left = ann.connection.bufferedAmount;
    await bob.so(() => bob.frames.length === sent);
    return { left, low: client.LOW_BUFFER, ann: summary(ann) };
  },
};

/** Runs one, and leaves nothing open. */
export async function run(client, name) {
  try {
    return await scenarios[name](client);
  } finally {
    for (const timer of timers.splice(0)) clearInterval(timer);
    for (const undo of undone.splice(0).reverse()) undo();
    for (const side of ended.splice(0)) await side.connection.close();
  }
}
