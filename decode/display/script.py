"""What makes the tokens of an answer easy to walk through. Without it all details can be read, only less easily."""

from __future__ import annotations

__all__ = ["SCRIPT"]

# A fragment may come more than once into a document, and its script with it: each run takes care of all new ones.
# One stop of the Tab key for the whole answer, arrows inside it; the card is a live region, which is read out.
SCRIPT = """
for (const root of document.querySelectorAll(".trimtab:not(.live)")) {
  root.classList.add("live");
  const tokens = [...root.querySelectorAll(".t")], card = root.querySelector(".card");
  if (!tokens.length) continue;
  const hint = card.textContent, answer = root.querySelector(".answer");
  let shown = null, stop = tokens[0];
  const show = token => {
    shown?.classList.remove("shown");
    token?.classList.add("shown");
    if (token !== shown) card.textContent = token ? token.dataset.about : hint;
    shown = token;
  };
  const tokenOf = event => event.target.closest(".t");
  const focused = () => tokens.includes(document.activeElement) ? document.activeElement : null;
  for (const token of tokens) {
    token.dataset.about = token.title;
    token.removeAttribute("title");
    token.tabIndex = token === stop ? 0 : -1;
  }
  card.hidden = false;
  answer.addEventListener("focusin", event => {
    stop.tabIndex = -1;
    stop = tokenOf(event) ?? stop;
    stop.tabIndex = 0;
    show(stop);
  });
  answer.addEventListener("focusout", () => show(null));
  answer.addEventListener("click", event => tokenOf(event)?.focus());
  answer.addEventListener("pointerover", event => { if (tokenOf(event)) show(tokenOf(event)); });
  root.addEventListener("pointerleave", () => show(focused()));
  answer.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const at = tokens.indexOf(stop), next = at + 1, last = tokens.length - 1;
    const keys = {ArrowRight: next, ArrowDown: next, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last};
    const to = keys[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    tokens[Math.min(Math.max(to, 0), last)].focus();
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") show(null); });
}
"""
