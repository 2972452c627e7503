"use strict";
(async () => {
  const root = document.getElementById("reader");
  const find = (name) => root.querySelector("." + name);
  const GOOD = new Set(["right", "taken", "kept"]), BAD = new Set(["wrong", "dropped"]);
  // Of a difference of probabilities this large, and beyond, the shade is the darkest.
  const DARKEST = 0.6;
  // Milliseconds after the last letter until it's searched for.
  const PAUSE = 150;

  const packed = Uint8Array.from(atob(document.getElementById("reader-data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const views = JSON.parse(await new Response(stream).text());

  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const textOf = (item) => [item.id, item.prompt, item.reference || "",
    ...item.cards.flatMap((card) => [card.title, ...card.facts, card.pieces.map((piece) => piece.text).join("")])].join("\n");
  for (const view of views) for (const item of view.items) item.lower = textOf(item).toLowerCase();

  let view, items = [], current = 0, started = false;

  function choices(select, names) {
    select.replaceChildren(...names.map(([value, label]) => Object.assign(make("option", "", label), { value })));
  }

  function open(index) {
    view = views[index];
    find("view").value = index;
    find("about").textContent = view.about;
    const marks = [...new Set(view.items.flatMap((item) => item.cards.flatMap((card) => card.marks)))].sort();
    choices(find("marks"), [["", "all responses"], ...marks.map((mark) => [mark, mark])]);
    search();
  }

  function search() {
    const wanted = find("query").value.trim().toLowerCase(), mark = find("marks").value;
    items = view.items.filter((item) => item.lower.includes(wanted)
      && (!mark || item.cards.some((card) => card.marks.includes(mark))));
    const [shown, there, all] = [items.length, view.items.length, view.total].map((count) => count.toLocaleString("en"));
    find("found").textContent = `${shown} of ${there} prompts` + (there === all ? "" : `, a random sample of ${all}`);
    find("items").replaceChildren(...items.map((item, index) => {
      const row = make("li"), button = make("button", "", item.prompt.trim().split("\n")[0].slice(0, 120) || item.id);
      const marks = item.cards.flatMap((card) => card.marks.slice(0, 1));
      const counts = [...new Set(marks)].sort((one, other) => GOOD.has(other) - GOOD.has(one)).map((name) => `${marks.filter((own) => own === name).length} ${name}`);
      button.append(make("small", "", counts.join(", ")));
      button.addEventListener("click", () => show(index));
      row.append(button);
      return row;
    }));
    root.dataset.query = wanted;
    show(0);
  }

  function show(index) {
    current = Math.max(0, Math.min(index, items.length - 1));
    find("previous").disabled = current <= 0;
    find("next").disabled = current >= items.length - 1;
    const pane = find("item"), item = items[current];
    [...find("items").children].forEach((row, place) => row.firstChild.setAttribute("aria-current", place === current));
    if (!item) {
      pane.replaceChildren(make("p", "facts", "Nothing is found."));
      return;
    }
    const mark = find("marks").value;
    const cards = make("div", "cards");
    cards.append(...item.cards.filter((card) => !mark || card.marks.includes(mark)).map(drawn));
    const prompt = make("p", "prompt");
    highlight(prompt, item.prompt);
    pane.replaceChildren(prompt);
    if (item.reference) pane.append(make("p", "reference", `Reference: ${item.reference}`));
    pane.append(cards);
    pane.scrollTop = 0;
    scrollTo(find("items"), find("items").children[current]);
    if (started) history.replaceState(null, "", `#reader/${views.indexOf(view)}/${encodeURIComponent(item.id)}`);
  }

  // Within the list alone: scrollIntoView would move the page, too.
  function scrollTo(list, row) {
    const top = row.offsetTop, bottom = top + row.offsetHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }

  function drawn(card) {
    const made = make("article", "card"), title = make("h3", "", card.title), text = make("div", "text");
    for (const mark of card.marks) title.append(make("span", "mark" + (GOOD.has(mark) ? " good" : BAD.has(mark) ? " bad" : ""), mark));
    const line = make("p", "sentence");
    text.append(...card.pieces.map((piece) => drawnPiece(piece, line)));
    made.append(title, make("p", "facts", card.facts.join(" · ")), text);
    if (text.querySelector(".shaded")) made.append(line);
    return made;
  }

  function drawnPiece(piece, line) {
    if (piece.omitted) return make("span", "omitted", `\n[… ${piece.omitted.toLocaleString("en")} characters are left out here …]\n`);
    const made = make("span", piece.writer || "");
    highlight(made, piece.text);
    if (piece.teacher !== undefined && piece.student !== undefined) {
      const difference = piece.teacher - piece.student;
      const said = `p(teacher) ${piece.teacher.toFixed(2)}, p(student) ${piece.student.toFixed(2)}, difference `
        + `${difference >= 0 ? "+" : "−"}${Math.abs(difference).toFixed(2)}`;
      const shade = Math.min(Math.abs(difference) / DARKEST, 1) * 0.55;
      made.className = "shaded";
      made.style.background = `rgba(${difference > 0 ? "37, 99, 235" : "234, 88, 12"}, ${shade.toFixed(3)})`;
      made.title = said;
      made.addEventListener("click", () => { line.textContent = said; });
    }
    return made;
  }

  // Text with what is searched for marked; never as markup.
  function highlight(parent, text) {
    const wanted = find("query").value.trim().toLowerCase(), lower = text.toLowerCase();
    let reached = 0;
    // Some letters change their length with their case: then places don't match, and nothing is marked.
    while (wanted && lower.length === text.length) {
      const place = lower.indexOf(wanted, reached);
      if (place < 0) break;
      parent.append(text.slice(reached, place), make("mark", "", text.slice(place, place + wanted.length)));
      reached = place + wanted.length;
    }
    parent.append(text.slice(reached));
  }

  function follow() {
    const [, index, id] = location.hash.match(/^#reader\/(\d+)\/(.*)$/) || [];
    if (index === undefined || !views[index]) return false;
    find("query").value = "";
    open(Number(index));
    show(items.findIndex((item) => encodeURIComponent(item.id) === id));
    return true;
  }

  choices(find("view"), views.map((own, index) => [index, own.title]));
  find("view").addEventListener("change", (event) => open(Number(event.target.value)));
  let waiting;
  find("query").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, PAUSE); });
  find("marks").addEventListener("change", search);
  find("previous").addEventListener("click", () => show(current - 1));
  find("next").addEventListener("click", () => show(current + 1));
  window.addEventListener("hashchange", follow);
  if (follow()) root.scrollIntoView();
  else open(0);
  started = true;
  root.dataset.ready = "true";
})().catch((error) => {
  document.querySelector("#reader .about").textContent = `The reader can't start in this browser: ${error.message}`;
});
