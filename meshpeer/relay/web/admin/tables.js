// The same as the graph, as tables: for screen readers, for the keyboard, and for looking things up.

import { el, keyed, setAttribute, setHidden, setText } from "./dom.js";
import { NONE, count, known, long, pathName, short, stateName } from "./format.js";
import { roundTrip, rttOf, standingWords, tally, tone, worry } from "./model.js";
import { chip, setChip, setNames } from "./parts.js";

const AT_FIRST = 100; // rows; the rest when asked for
const ORDER = ["bad", "relay", "away", "idle", "well"];

const compare = (a, b) => (a === b ? 0 : !known(a) ? 1 : !known(b) ? -1 : a < b ? -1 : 1);

/** A table whose columns sort. A column: { title, value(item), fill(cell, item), number }. */
class Table {
  element;
  #body = el("tbody");
  #more = el("button", { type: "button", className: "quiet" });
  #about;
  #sort;
  #all = false;
  #items = [];
  #context = null;

  constructor(about) {
    this.#about = about;
    this.#sort = { column: about.sort ?? 0, down: false };
    const heads = about.columns.map((column, i) => {
      const button = el("button", { type: "button", className: "plain" }, column.title);
      button.addEventListener("click", () => {
        this.#sort = { column: i, down: this.#sort.column === i && !this.#sort.down };
        this.#draw();
      });
      return el("th", { scope: "col", className: column.number ? "number" : "" }, button);
    });
    this.#more.addEventListener("click", () => {
      this.#all = true;
      this.#draw();
    });
    this.element = el("div", { className: "scroller" }, el("table", {}, el("caption", {}, about.title), el("thead", {}, el("tr", {}, ...heads)), this.#body), this.#more);
  }

  /** `context` is handed to the columns. */
  update(items, context) {
    this.#items = items;
    this.#context = context;
    this.#draw();
  }

  #draw() {
    const { columns, key, choose, chosen } = this.#about;
    const { column, down } = this.#sort;
    const context = this.#context;
    const value = columns[column].value;
    const sorted = this.#items
      .map((item) => [value(item, context), item])
      .sort(([a, one], [b, two]) => (down ? -1 : 1) * compare(a, b) || compare(key(one), key(two)))
      .map(([, item]) => item);
    keyed(
      this.#body,
      this.#all ? sorted : sorted.slice(0, AT_FIRST),
      key,
      (item) => {
        const button = el("button", { type: "button", className: "plain" });
        const [first, ...rest] = columns.map((each) => el("td", { className: each.number ? "number" : (each.className ?? "") }));
        const row = el("tr", {}, el("th", { scope: "row" }, button), ...rest.map((cell) => cell));
        first.remove();
        row.addEventListener("click", () => choose(item));
        return row;
      },
      (row, item) => {
        columns.forEach((each, i) => each.fill(i ? row.cells[i] : row.cells[0].firstChild, item, context));
        setAttribute(row, "aria-current", chosen(item, context) ? "true" : null);
      },
    );
    [...this.element.querySelectorAll("thead th")].forEach((head, i) => setAttribute(head, "aria-sort", i === column ? (down ? "descending" : "ascending") : null));
    const hidden = this.#all ? 0 : Math.max(0, sorted.length - AT_FIRST);
    setHidden(this.#more, !hidden);
    if (hidden) setText(this.#more, `Show ${count(hidden)} more`);
    setHidden(this.element, !sorted.length);
  }
}

const text = (get) => (cell, item, context) => setText(cell, get(item, context));

/** A cell with a chip in it. */
const chipped = (set) => (cell, item, context) => {
  if (!cell.firstChild) cell.append(chip());
  set(cell.firstChild, item, context);
};

export class Tables {
  #members;
  #links;

  constructor(box, { onPeer, onLink }) {
    this.#members = new Table({
      title: "Members",
      key: (member) => member.peerId,
      choose: (member) => onPeer(member.peerId),
      chosen: (member, { selection }) => selection.peer === member.peerId,
      columns: [
        { title: "Name", value: (member, { room }) => room.name(member.peerId).toLowerCase(), fill: (button, member, { room }) => setNames(button, [room.name(member.peerId)]) },
        {
          title: "Standing",
          value: (member, { room }) => ORDER.indexOf(room.standing(member)),
          fill: chipped((each, member, { room }) => setChip(each, ...standingWords(room, member))),
        },
        ...[["Direct", "direct"], ["TURN", "turn"], ["Relay", "relay"], ["Down", "bad"]].map(([title, name]) => {
          const get = (member, { room }) => tally(room.linksOf.get(member.peerId))[name];
          return { title, number: true, value: (member, context) => -get(member, context), fill: text((member, context) => count(get(member, context))) };
        }),
        this.#roundTrip((member, { room }) => roundTrip(room.linksOf.get(member.peerId))),
        { title: "Here for", number: true, value: (member) => -member.joined, fill: text((member, { now }) => long(now - member.joined)) },
        { title: "Address", value: (member) => member.address, fill: text((member) => member.address ?? NONE), className: "code" },
        { title: "Id", value: (member) => member.peerId, fill: text((member) => member.peerId), className: "code" },
      ],
    });
    const worst = (get) => (link) => {
      const sides = [link.aSide, link.bSide].filter(Boolean).map(get);
      return sides.length ? Math.max(...sides) : null;
    };
    const failure = (link) => link.aSide?.failure || link.bSide?.failure || link.aSide?.reason || link.bSide?.reason || null;
    const restarts = worst((side) => side.restarts);
    this.#links = new Table({
      title: "Links",
      sort: 1, // those in trouble first
      key: (link) => link.key,
      choose: (link) => onLink(link.a, link.b),
      chosen: (link, { room, selection }) => Boolean(selection.link) && room.link(...selection.link) === link,
      columns: [
        {
          title: "Between",
          value: (link, { room }) => `${room.name(link.a)}\n${room.name(link.b)}`.toLowerCase(),
          fill: (button, link, { room }) => setNames(button, [room.name(link.a), room.name(link.b)]),
        },
        { title: "State", value: (link) => -worry(link), fill: chipped((each, link) => setChip(each, stateName(link.state), tone(link))) },
        { title: "Path", value: (link) => link.path, fill: text((link) => pathName(link.path)) },
        this.#roundTrip(rttOf),
        { title: "Quality", value: (link) => ["poor", "fair", "good"].indexOf(link.quality), fill: text((link) => link.quality ?? NONE) },
        { title: "For", number: true, value: (link) => (known(link.since) ? -link.since : null), fill: text((link, { now }) => (known(link.since) ? long(now - link.since) : NONE)) },
        { title: "Restarts", number: true, value: (link) => -(restarts(link) ?? 0), fill: text((link) => count(restarts(link))) },
        { title: "Last failure, or why", value: failure, fill: text((link) => failure(link) ?? NONE), className: "wide" },
      ],
    });
    box.append(this.#members.element, this.#links.element);
  }

  #roundTrip(get) {
    return { title: "Round trip", number: true, value: get, fill: text((item, context) => short(get(item, context))) };
  }

  update(room, selection, now) {
    const context = { room, selection, now };
    this.#members.update(room?.members ?? [], context);
    this.#links.update(room?.links ?? [], context);
  }
}
