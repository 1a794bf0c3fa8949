const words = [...document.querySelectorAll(".word")];
const layers = document.querySelectorAll(".heat");
const facts = document.querySelectorAll(".fact");
const below = document.querySelector(".below");
const hint = document.querySelector(".hint");
let kept = -1;

function show(index) {
  below.hidden = index < 0;
  hint.hidden = index >= 0;
  words.forEach((word, place) => word.setAttribute("aria-pressed", place === index));
  layers.forEach((layer, place) => { layer.hidden = place !== index; });
  facts.forEach((fact, place) => { fact.hidden = place !== index; });
}

words.forEach((word, index) => {
  word.addEventListener("mouseenter", () => show(index));
  word.addEventListener("mouseleave", () => show(kept));
  word.addEventListener("focus", () => show(index));
  word.addEventListener("blur", () => show(kept));
  word.addEventListener("click", () => { kept = kept === index ? -1 : index; show(kept); });
});
show(kept);
