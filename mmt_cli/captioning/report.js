"use strict";
{
  const tools = document.querySelector(".tools");
  const [search, onlyFailed] = tools.querySelectorAll("input");
  const count = tools.querySelector("output");
  const figures = document.querySelector("main").children;
  const folded = (text) => text.normalize("NFC").toLowerCase();

  let cards;
  // Made when it is first needed: the page is there sooner, and most readers scroll before they search.
  const allCards = () => (cards ??= Array.from(figures, (figure) => ({
    figure,
    failed: figure.classList.contains("failed"),
    text: folded(Array.from(figure.querySelectorAll(".path, .caption, .error"), (part) => part.textContent).join("\n")),
  })));

  const filter = () => {
    const words = folded(search.value).split(/\s+/);
    let shown = 0;
    for (const { figure, failed, text } of allCards()) {
      const fits = (failed || !onlyFailed.checked) && words.every((word) => text.includes(word));
      if (figure.hidden === fits) figure.hidden = !fits;
      shown += fits;
    }
    count.value = `${shown} of ${figures.length}`;
  };

  document.querySelector("header").after(document.querySelector(".summary"));
  search.addEventListener("input", filter);
  onlyFailed.addEventListener("change", filter);
  tools.hidden = false;
  // A browser that goes back to the page fills in what was typed before.
  if (search.value || onlyFailed.checked) filter();
  else count.value = `${figures.length} of ${figures.length}`;
}
