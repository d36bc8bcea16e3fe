"use strict";

// Results table: a header's button sorts by its column, and turns the order round when used again. The mean stays in the foot.
for (const table of document.querySelectorAll("#results-table")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const text = (row) => row.cells[column].textContent.trim();
      const isName = column === 0;
      const before = header.getAttribute("aria-sort");
      const order = before ? (before === "ascending" ? "descending" : "ascending") : isName ? "ascending" : "descending";
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        if (isName) return sign * (text(a) < text(b) ? -1 : text(a) > text(b) ? 1 : 0);
        const [left, right] = [parseFloat(text(a)), parseFloat(text(b))];
        if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right); // no number: last
        return sign * (left - right);
      };
      body.append(...[...body.rows].sort(compare));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
    });
  });
}

// Gallery: a card enlarges in the dialog; arrow keys and buttons step through the cards of its class.
const lightbox = document.getElementById("lightbox");
let cards = [];
let current = 0;

function show(index) {
  current = (index + cards.length) % cards.length;
  const card = cards[current];
  const { file, class: name, label, score, rank, pick } = card.dataset;
  lightbox.querySelector("h2").textContent = file;
  const facts = [["class", name], ["label", label], ["score", score], ["rank by score", rank]];
  lightbox.querySelector(".facts").replaceChildren(
    ...facts.map(([title, value]) => {
      const fact = document.createElement("span");
      const term = document.createElement("small");
      term.textContent = title;
      fact.append(term, " ", value);
      return fact;
    }),
  );
  lightbox.querySelector(".large").replaceChildren(
    ...[...card.querySelector(".pictures").children].map((picture) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = picture.dataset.title;
      figure.append(picture.cloneNode(true), caption);
      return figure;
    }),
  );
  lightbox.querySelector(".position").textContent = `${pick} (${current + 1} of ${cards.length})`;
}

document.getElementById("gallery").addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (!card) return;
  cards = [...card.closest("details").querySelectorAll(".card")];
  show(cards.indexOf(card));
  lightbox.showModal();
});

lightbox.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  show(current + step);
});
lightbox.querySelector(".previous").addEventListener("click", () => show(current - 1));
lightbox.querySelector(".next").addEventListener("click", () => show(current + 1));
lightbox.querySelector(".close").addEventListener("click", () => lightbox.close());
lightbox.addEventListener("click", (event) => event.target === lightbox && lightbox.close()); // outside the box
lightbox.addEventListener("close", () => cards[current].focus());

// A link to a class opens it.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const details = target && target.closest("details");
  if (!details) return;
  details.open = true;
  details.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();
