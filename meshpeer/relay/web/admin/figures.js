// The key figures, the curves, and the relay's own figures.

import { Chart, drawSparkline } from "./charts.js";
import { byId, el, keyed, setHidden, setText, svg } from "./dom.js";
import { NONE, bytes, count, counted, percent, short } from "./format.js";
import { pairs } from "./parts.js";

const share = (part, all) => (all > 0 ? part / all : null);
const pairsOf = (sample) => sample.direct + sample.turn + sample.relay + sample.unconnected;
const activeOf = (sample) => sample.direct + sample.turn;
const successOf = (sample) => share(sample.successes, sample.successes + sample.failures);

/** The sum over all rooms, unless some are not told about. */
function sum(overview, name) {
  if (overview.rooms.length < overview.roomCount) return null;
  return overview.rooms.reduce((all, room) => all + room[name], 0);
}

const FIGURES = [
  {
    title: "Rooms",
    value: (o) => count(o.roomCount),
    about: ({ rooms, roomCount }) => {
      if (rooms.length < roomCount) return ""; // of some it is not told
      const apart = rooms.filter((room) => room.unconnected).length;
      if (apart) return `${count(apart)} not all connected`;
      return rooms.some((room) => room.links) ? "all pairs connected" : "";
    },
  },
  {
    title: "Members",
    value: (o) => count(sum(o, "members")),
    about: (o) => (sum(o, "away") ? `${count(sum(o, "away"))} away` : ""),
    curve: (sample) => sample.members,
  },
  {
    title: "Active P2P",
    value: (o) => count(o.metrics.activeP2PConnections),
    about: (o) => (sum(o, "links") === null ? "pairs" : `of ${counted(sum(o, "links"), "pair")}`),
    curve: activeOf,
  },
  {
    title: "Upgrade rate",
    value: (o) => percent(o.metrics.meshUpgradeRate),
    about: () => "of the pairs are P2P",
    curve: (sample) => share(activeOf(sample), pairsOf(sample)),
  },
  {
    title: "Success rate",
    value: (o) => percent(share(o.metrics.successfulP2PConnections, o.metrics.successfulP2PConnections + o.metrics.failedP2PConnections)),
    about: (o) => `${count(o.metrics.failedP2PConnections)} failed of ${count(o.metrics.totalP2PAttempts)}`,
    curve: successOf,
    dots: true,
  },
  {
    title: "Connection time",
    value: (o) => short(o.metrics.averageConnectionTime),
    about: () => "on average",
    curve: (sample) => sample.connectionTime,
    dots: true,
  },
  { title: "P2P messages", value: (o) => count(o.metrics.p2pMessageCount), about: () => "not over the relay" },
  { title: "Fallbacks", value: (o) => count(o.metrics.fallbackCount), about: () => "to the relay" },
];

const CHARTS = [
  { title: "Success rate", colour: "direct", value: successOf, format: percent, top: 1, dots: true },
  { title: "Connection time", colour: "turn", value: (sample) => sample.connectionTime, format: short, smallest: 0.01, dots: true },
  { title: "Round trip, median", colour: "accent", value: (sample) => sample.rtt, format: short, smallest: 0.001 },
  { title: "Members", colour: "plain", value: (sample) => sample.members, format: count, smallest: 1 },
];

/** What a refusal means to an operator, where its code does not say it. */
const BAD_CLIENT = "a client of another make, or somebody who tries things";
const REFUSALS = {
  malformed: BAD_CLIENT,
  not_json: BAD_CLIENT,
  too_deep: BAD_CLIENT,
  bad_forward: BAD_CLIENT,
  unsupported_version: "clients of another version",
  not_joined: "a socket that did not join in time, or said something else first",
  unauthorized: "no join token, an expired one, or one of another secret",
  forbidden: "a join token for other rooms, or another id",
  peer_id_taken: "two programs with one id",
  room_full: "--max-members",
  too_many_rooms: "--max-rooms",
  no_such_peer: "a message to somebody who had just left",
  rate_limited: "too many joins of one address (--join-rate), or messages of one member (--message-rate)",
  no_data: "data that should go over this relay, which takes none",
  admin_unauthorized: "a wrong password for this dashboard or the admin API",
  admin_rate_limited: "not listened to, after too many of those",
  "sockets: max_connections": "--max-connections",
  "sockets: max_connections_per_address": "of one address, or of a proxy that --trusted-proxy does not name",
  "sockets: origin": "pages of other sites: --origin lets them in",
  "sockets: bad_request": "no WebSocket client: scanners, for the most part",
  "sockets: handshake_timeout": "connections on which nothing came",
  "sockets: too_many_frames": "pings without end, or fragments with nothing in them",
};

export class Figures {
  #tiles = new Map();
  #charts = CHARTS.map((about) => new Chart(about));

  constructor() {
    for (const figure of FIGURES) {
      const value = el("dd", { className: "value" }, NONE);
      const about = el("dd", { className: "about" });
      const curve = svg("svg", { class: "spark", width: 60, height: 22, viewBox: "0 0 60 22", "aria-hidden": "true" });
      byId("figures").append(el("div", {}, el("dt", {}, figure.title), value, about, curve));
      this.#tiles.set(figure, { value, about, curve });
    }
    byId("curves").append(...this.#charts.map((chart) => chart.element));
  }

  update(overview) {
    for (const [figure, { value, about }] of this.#tiles) {
      setText(value, figure.value(overview));
      setText(about, figure.about?.(overview) ?? "");
    }
    this.#relay(overview);
  }

  draw(history, now) {
    for (const [figure, { curve }] of this.#tiles) {
      if (figure.curve) drawSparkline(curve, history.slice(-180), figure.curve, figure.dots);
    }
    for (const chart of this.#charts) chart.update(history, now);
  }

  #relay({ relay, refused }) {
    pairs(byId("relay-figures"), [
      ["Sockets open", count(relay.connections)],
      ["Sockets accepted", count(relay.accepted)],
      ["Cut off, did not read", count(relay.cutOff)],
      ["Messages in", `${count(relay.messagesIn)} (${bytes(relay.bytesIn)})`],
      ["Messages out", `${count(relay.messagesOut)} (${bytes(relay.bytesOut)})`],
    ]);
    const all = [
      ...Object.entries(refused),
      ...Object.entries(relay.refused).map(([why, times]) => [`sockets: ${why}`, times]),
    ].filter(([, times]) => times);
    all.sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
    keyed(
      byId("refusals"),
      all,
      ([code]) => code,
      ([code]) => el("li", {}, el("span", { className: "code" }, code.replaceAll("_", " ")), el("span", { className: "number" }), el("i", { aria: { hidden: "true" } }), ...(Object.hasOwn(REFUSALS, code) ? [el("small", {}, REFUSALS[code])] : [])),
      (item, [, times]) => {
        setText(item.children[1], count(times));
        item.children[2].style.width = `${(times / all[0][1]) * 100}%`;
      },
    );
    setHidden(byId("refusals-empty"), all.length > 0);
  }
}
