// Sorts a table by the column whose header is pressed: numbers by their full precision, words by the alphabet.
"use strict";
document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const column = Array.from(head.parentNode.children).indexOf(head);
      const rising = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("number"));
      const key = (row) => {
        const cell = row.children[column];
        return "sort" in cell.dataset ? parseFloat(cell.dataset.sort) : cell.textContent.trim();
      };
      const missing = (value) => typeof value === "number" && Number.isNaN(value);
      const rows = Array.from(body.rows).map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        // What has no number stays below, whichever way the rest goes.
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return rising ? order : -order;
      });
      body.append(...rows.map(([, row]) => row));
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    });
  });
});
