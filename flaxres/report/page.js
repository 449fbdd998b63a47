"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (button) button.onclick = () => sort(table, heads, column);
  });
}

function sort(table, heads, column) {
  const isText = heads[column].classList.contains("text");
  const before = heads[column].getAttribute("aria-sort");
  // Words begin with A, figures with the largest.
  const up = before ? before === "descending" : isText;
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // without a value: last
    const least = isText ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return up ? least : -least;
  };
  body.append(...[...body.rows].sort(order));
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.confusion")) {
  const told = document.getElementById(table.getAttribute("aria-describedby"));
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const show = (event) => {
    const cell = event.target.closest("td");
    if (!cell || cell.classList.contains("at")) return;
    const row = cell.parentElement, count = Number(cell.textContent), all = Number(row.dataset.images);
    for (const lit of table.querySelectorAll(".lit, .at")) lit.classList.remove("lit", "at");
    cell.classList.add("at");
    row.cells[0].classList.add("lit");
    table.tHead.rows[0].cells[cell.cellIndex].classList.add("lit");
    const share = all ? ` (${(100 * count / all).toFixed(1)}%)` : "";
    told.textContent = `${row.cells[0].textContent.trim()} predicted as ${names[cell.cellIndex]}: ` +
      `${count.toLocaleString("en")} of ${all.toLocaleString("en")} images${share}`;
  };
  table.addEventListener("pointerover", show);
  table.addEventListener("click", show);
}

// Closed details would not be printed.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    details.dataset.closed = "";
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-closed]")) {
    details.open = false;
    delete details.dataset.closed;
  }
});
