"use strict";
for (const figure of document.querySelectorAll(".compare")) {
  const slider = figure.querySelector("input");
  const move = () => figure.style.setProperty("--pos", slider.value + "%");
  slider.addEventListener("input", move);
  move();
}
const frames = [...document.querySelectorAll(".frame")];
const buttons = [...document.querySelectorAll(".choose button")];
const choose = (number) => {
  frames.forEach((frame, i) => { frame.hidden = i !== number; });
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
};
buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
if (frames.length > 1) choose(0);
