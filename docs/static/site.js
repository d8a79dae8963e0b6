// What scrolls sideways can be reached by keyboard; captions of the sidebar are headings of a level.
for (const box of document.querySelectorAll("pre, table.docutils"))
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
for (const caption of document.querySelectorAll('[role="heading"]:not([aria-level])'))
  caption.ariaLevel = 2;
