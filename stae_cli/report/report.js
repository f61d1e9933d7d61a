"use strict";
// The gallery and the viewer. Names reach the page as text only, never as markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  if (!data.photos.length) return;

  const COLUMNS = data.columns;
  const several = COLUMNS.length > 1;
  const photos = data.photos.map(([name, width, height, scores], number) => ({
    number, name, width, height, url: name.split("/").map(encodeURIComponent).join("/"),
    scores: scores.map(([mse, ssim]) => ({ mse, ssim, psnr: 10 * Math.log10(4 / mse) })),
    lower: name.toLowerCase(),
  }));
  for (const photo of photos) photo.best = several ? winner(photo) : -1;
  const byName = new Map(photos.map((photo) => [photo.name, photo]));

  function winner(photo) {  // -1 for a tie
    const least = Math.min(...photo.scores.map((score) => score.mse));
    const holders = photo.scores.filter((score) => score.mse === least);
    return holders.length > 1 ? -1 : photo.scores.findIndex((score) => score.mse === least);
  }

  const psnrText = (psnr) => (psnr === Infinity ? "identical" : `${psnr.toFixed(2)} dB`);
  const ssimText = (ssim) => (ssim === null ? "-" : ssim.toFixed(4));

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // Gallery: rows of equal height, of which only those near the window exist.

  const rows = $("rows");
  const GAP = 14, NARROWEST = 240, NARROWEST_ON_PHONES = 150, CAPTION = 58;  // CSS pixels
  const NEAR = 900;  // pixels above and below the window
  const drawn = new Map();  // by the number of the row
  let shown = [], perRow = 1, pitch = 1;

  function columnOf() { return several ? Number($("column").value) : 0; }

  const NATURAL = new Intl.Collator(undefined, { numeric: true });  // img2 before img10
  const ORDERS = {
    psnr: (a, b) => b.scores[columnOf()].mse - a.scores[columnOf()].mse,
    ssim: (a, b) => (a.scores[columnOf()].ssim ?? 2) - (b.scores[columnOf()].ssim ?? 2),
    name: (a, b) => NATURAL.compare(a.name, b.name),
    size: (a, b) => a.width * a.height - b.width * b.height,
  };
  const DIRECTIONS = {
    psnr: ["worst first", "best first"], ssim: ["worst first", "best first"],
    name: ["A to Z", "Z to A"], size: ["smallest first", "largest first"],
  };

  function arrange() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const best = several ? $("winner").value : "";
    const compare = ORDERS[$("sort").value];
    const sign = $("order").value === "up" ? 1 : -1;
    shown = photos
      .filter((photo) => words.every((word) => photo.lower.includes(word)))
      .filter((photo) => best === "" || photo.best === Number(best))
      .sort((a, b) => sign * compare(a, b) || a.number - b.number);
    $("count").textContent = shown.length === photos.length
      ? `${photos.length} ${photos.length === 1 ? "picture" : "pictures"}`
      : `${shown.length} of ${photos.length}`;
    $("nothing").hidden = shown.length > 0;
    lay();
  }

  function lay() {
    const width = rows.clientWidth;
    const narrowest = width < 700 ? NARROWEST_ON_PHONES : NARROWEST;
    perRow = Math.max(1, Math.floor((width + GAP) / (narrowest + GAP)));
    const tile = (width - (perRow - 1) * GAP) / perRow;
    pitch = Math.round(tile * 0.75) + CAPTION + GAP;
    rows.style.setProperty("--columns", perRow);
    rows.style.setProperty("--row", `${pitch - GAP}px`);
    rows.style.setProperty("--tools", `${document.querySelector(".tools").offsetHeight + 10}px`);
    rows.style.height = `${Math.ceil(shown.length / perRow) * pitch}px`;
    drawn.clear();
    rows.replaceChildren();
    draw();
  }

  function draw() {
    const top = rows.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((-top - NEAR) / pitch));
    const last = Math.min(Math.ceil(shown.length / perRow), Math.ceil((innerHeight - top + NEAR) / pitch));
    for (const [number, row] of drawn) {
      if ((number < first || number >= last) && !row.contains(document.activeElement)) {
        row.remove();
        drawn.delete(number);
      }
    }
    for (let number = first; number < last; number += 1) drawRow(number);
  }

  function drawRow(number) {
    if (drawn.has(number)) return drawn.get(number);
    const start = number * perRow;
    const row = element("div", { className: "row" },
      ...shown.slice(start, start + perRow).map((photo, index) => tileOf(photo, start + index)));
    row.setAttribute("role", "presentation");
    row.style.top = `${number * pitch}px`;
    const after = Math.min(...[...drawn.keys()].filter((other) => other > number));
    rows.insertBefore(row, drawn.get(after) ?? null);  // in the order of Tab
    drawn.set(number, row);
    return row;
  }

  function tileOf(photo, place) {
    const score = photo.scores[columnOf()];
    const image = element("img", {
      src: `${photo.url}.thumbnail.jpg`, alt: `Thumbnail of ${photo.name}`, decoding: "async", draggable: false,
    });
    const link = element("a", { href: addressOf(photo) },
      element("span", { className: "frame" }, image),
      element("span", { className: "name", dir: "auto", textContent: photo.name, title: photo.name }),
      element("span", { className: "score" },
        ...(several && photo.best >= 0 ? [markOf(photo.best)] : []),
        element("b", { textContent: psnrText(score.psnr) }), ` · ${ssimText(score.ssim)}`));
    link.place = place;
    const tile = element("div", { className: "tile" }, link);
    tile.setAttribute("role", "listitem");
    tile.setAttribute("aria-setsize", shown.length);
    tile.setAttribute("aria-posinset", place + 1);
    return tile;
  }

  function markOf(column) {
    const text = `${COLUMNS[column].name} is best`;
    const mark = element("span", { className: `swatch c${column % 6}`, title: text });
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", text);
    return mark;
  }

  function focusTile(place) {
    const wanted = Math.min(Math.max(place, 0), shown.length - 1);
    if (wanted < 0) return;
    const row = drawRow(Math.floor(wanted / perRow));
    const link = row.children[wanted % perRow].firstElementChild;
    link.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  for (const id of ["column", "winner", "order"]) $(id)?.addEventListener("change", arrange);
  $("search").addEventListener("input", arrange);
  $("sort").addEventListener("change", () => {
    const [up, down] = DIRECTIONS[$("sort").value];
    $("order").options[0].text = up;
    $("order").options[1].text = down;
    $("order").value = "up";
    arrange();
  });
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  let awaited = false;  // at most once for each frame
  document.addEventListener("scroll", () => {
    if (awaited) return;
    awaited = true;
    requestAnimationFrame(() => { awaited = false; draw(); });
  }, { passive: true });
  let laidFor = 0;
  new ResizeObserver(() => {
    if (rows.clientWidth === laidFor) return draw();
    laidFor = rows.clientWidth;
    const focused = document.activeElement.place;  // of a tile
    lay();
    if (focused !== undefined) focusTile(focused);
  }).observe(document.documentElement);

  // Viewer: two panes under the divider, and the difference over them; all zoom together.

  const viewer = $("viewer"), stage = $("stage"), slider = $("slider"), handle = $("handle");
  const sheets = [...document.querySelectorAll(".sheet")];
  const sides = { left: -1, right: 0 };  // -1 is the original
  let current = null, fitted = 1, openedHere = false, zoomer = null;

  function nameOf(side) { return side < 0 ? "original" : COLUMNS[side].name; }

  function urlOf(photo, side) {
    return `${photo.url}.${side < 0 ? "original.png" : COLUMNS[side].suffix}`;
  }

  function altOf(photo, side) {
    return side < 0 ? `Original: ${photo.name}` : `Reconstruction by ${nameOf(side)}: ${photo.name}`;
  }

  function setImage(id, photo, side) {
    const image = $(id), url = urlOf(photo, side);
    if (image.getAttribute("src") !== url) {
      image.removeAttribute("src");  // else a slow server leaves the picture before under this name
      image.src = url;
    }
    image.alt = id === "over" || id === "under" ? "" : altOf(photo, side);
  }

  function drawPair() {
    setImage("left", current, sides.left);
    setImage("right", current, sides.right);
    setImage("under", current, sides.left);
    setImage("over", current, sides.right);
    const [left, right] = [nameOf(sides.left), nameOf(sides.right)];
    const differing = !$("difference").hidden;
    const difference = `|${right} \u2212 ${left}| \u00d7 ${data.gain}`;
    $("left-label").hidden = differing;
    $("left-label").textContent = left;
    $("right-label").textContent = differing ? difference : right;
    $("difference").setAttribute("aria-label", `Difference ${difference}: ${current.name}`);
    handle.setAttribute("aria-label", `Divider between ${left} and ${right}`);
    for (const [side, chosen] of Object.entries(sides)) {
      const input = document.querySelector(`#${side}-switch input[value="${chosen}"]`);
      if (input) input.checked = true;
    }
    report();
  }

  function report() {  // a source that failed before gives no second event
    $("missing").hidden = !["left", "right"].some((id) => $(id).complete && !$(id).naturalWidth);
  }

  function open(photo) {
    current = photo;
    const place = shown.indexOf(photo);
    $("viewer-name").textContent = photo.name;
    $("position").textContent = place < 0 ? "" : `${place + 1} of ${shown.length}`;
    $("spoken").textContent = `${photo.name}, ${$("position").textContent}`;
    $("previous").disabled = place <= 0;
    $("next").disabled = place < 0 || place === shown.length - 1;
    $("figures").replaceChildren(
      element("span", { className: "note", textContent: `${photo.width}×${photo.height}` }),
      ...photo.scores.map((score, index) => element("span", {},
        ...(several ? [element("b", { textContent: `${nameOf(index)} ` })] : []),
        `PSNR ${psnrText(score.psnr)}, SSIM ${ssimText(score.ssim)}`,
        element("span", { className: "mse", textContent: `, MSE ${score.mse.toPrecision(3)}` }))));
    drawPair();
    if (!viewer.open) {
      viewer.showModal();
      document.documentElement.classList.add("viewing");  // the page behind does not scroll
      zoomer ??= makeZoomer();
      setDivider(50);
    }
    fit();
  }

  let addressed = 0;

  function step(by) {
    const photo = shown[shown.indexOf(current) + by];
    if (!photo || !shown.includes(current)) return;
    open(photo);
    clearTimeout(addressed);  // browsers refuse many new addresses a second
    addressed = setTimeout(() => {
      if (!viewer.open) return;
      history.replaceState(null, "", addressOf(current));
      const place = shown.indexOf(current);
      for (const other of [shown[place + 1], shown[place - 1]].filter(Boolean)) {
        for (const side of Object.values(sides)) new Image().src = urlOf(other, side);
      }
    }, 250);
  }

  function addressOf(photo) { return `#photo=${encodeURIComponent(photo.name)}`; }

  function follow() {  // what the address asks for
    clearTimeout(addressed);
    const wanted = /^#photo=(.*)$/.exec(location.hash);
    let photo = null;
    try {
      photo = wanted && byName.get(decodeURIComponent(wanted[1]));
    } catch { /* an address that was typed */ }
    if (photo) open(photo);
    else if (viewer.open) viewer.close();
  }

  function fit() {
    const { clientWidth, clientHeight } = stage;
    fitted = Math.min(clientWidth / current.width, clientHeight / current.height, 8);
    for (const sheet of sheets) {
      sheet.style.width = `${current.width * fitted}px`;
      sheet.style.height = `${current.height * fitted}px`;
    }
    zoomer.setOptions({ minScale: Math.min(1, 1 / fitted) / 2, maxScale: Math.max(1, 48 / fitted) });
    zoomer.reset({ animate: false });
  }

  function makeZoomer() {
    const made = Panzoom(sheets[0], {
      noBind: true, cursor: "", startScale: 1,
      setTransform: (_, { x, y, scale }) => {
        for (const sheet of sheets) sheet.style.transform = `scale(${scale}) translate(${x}px, ${y}px)`;
        stage.classList.toggle("sharp", scale * fitted >= 0.999);  // else 1:1 would smooth
        $("scale").textContent = `${Math.round(scale * fitted * 100)}%`;
      },
    });
    const fingers = new Map();  // where each is
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const bounds = handle.getBoundingClientRect();
      const onHandle = event.clientX >= bounds.left && event.clientX <= bounds.right;
      if (onHandle && $("difference").hidden) return;  // the divider's
      made.handleDown(event);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (fingers.size === 2) {  // Panzoom adds step / 80 for each pixel between them
        const [[a, b], [c, d]] = fingers.values();
        made.setOptions({ step: 80 * made.getScale() / Math.max(1, Math.hypot(a - c, b - d)) });
      }
    });
    document.addEventListener("pointermove", (event) => {
      if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [event.clientX, event.clientY]);
      made.handleMove(event);
    }, { passive: true });
    for (const name of ["pointerup", "pointercancel"]) {
      document.addEventListener(name, (event) => {
        fingers.delete(event.pointerId);
        made.handleUp(event);
      }, { passive: true });
    }
    stage.addEventListener("wheel", (event) => {  // as far as a trackpad says, not only where to
      event.preventDefault();
      if (!event.deltaY) return;
      const pixels = Math.max(-100, Math.min(100, event.deltaY * [1, 16, 400][event.deltaMode]));
      const wanted = made.getScale() * Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.002));
      const { minScale, maxScale } = made.getOptions();
      made.zoomToPoint(Math.min(maxScale, Math.max(minScale, wanted)), event, { animate: false });
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => {
      if (made.getScale() * fitted < 4) made.zoomToPoint(8 / fitted, event);
      else made.reset({ animate: false });
    });
    return made;
  }

  function zoomTo(factor) {  // pixels of the screen for one of the picture, about the middle
    zoomer.zoom(factor / fitted, { animate: false });
  }

  function toggleDifference() {
    const show = $("difference").hidden;
    $("difference").hidden = !show;
    slider.inert = show;  // it lies below
    $("toggle").setAttribute("aria-pressed", String(show));
    drawPair();
  }

  function choose(side, value) {
    sides[side] = value;
    drawPair();
  }

  function fillSwitch(side, values) {
    $(`${side}-switch`).append(...values.map((value) => {
      const input = element("input", { type: "radio", name: side, value });
      input.addEventListener("change", () => choose(side, value));
      // After a click, arrows go on to other pictures; whoever came by Tab chooses with them.
      input.addEventListener("click", (event) => { if (event.detail) input.blur(); });
      return element("label", { className: "choice" }, input, element("span", { textContent: nameOf(value), dir: "auto" }));
    }));
  }

  function setDivider(percent) {
    slider.value = percent;
    handle.setAttribute("aria-valuenow", Math.round(percent));
  }

  const indices = COLUMNS.map((_, index) => index);
  if (several) {
    fillSwitch("left", [-1, ...indices]);
    fillSwitch("right", indices);
  } else {
    for (const side of ["left", "right"]) $(`${side}-switch`).hidden = true;
  }
  stage.style.setProperty("--gain", data.gain);
  slider.addEventListener("slide", () => handle.setAttribute("aria-valuenow", Math.round(slider.value)));
  for (const id of ["left", "right"]) {
    for (const name of ["error", "load"]) $(id).addEventListener(name, report);
  }
  $("close").addEventListener("click", () => viewer.close());
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("toggle").addEventListener("click", toggleDifference);
  $("in").addEventListener("click", () => zoomTo(zoomer.getScale() * fitted * 1.5));
  $("out").addEventListener("click", () => zoomTo(zoomer.getScale() * fitted / 1.5));
  $("fit").addEventListener("click", fit);
  $("pixels").addEventListener("click", () => zoomTo(1));
  rows.addEventListener("click", (event) => { if (event.target.closest("a")) openedHere = true; });
  viewer.addEventListener("close", () => {
    document.documentElement.classList.remove("viewing");
    const show = () => { if (current) focusTile(Math.max(0, shown.indexOf(current))); };
    if (location.hash.startsWith("#photo=") && openedHere) {
      window.addEventListener("hashchange", show, { once: true });  // going back scrolls, too
      history.back();
    } else if (location.hash.startsWith("#photo=")) {
      location.replace("#all");
    }
    openedHere = false;
    show();
  });
  window.addEventListener("hashchange", follow);
  new ResizeObserver(() => {
    if (!viewer.open) return;
    const factor = zoomer.getScale() * fitted, { x, y } = zoomer.getPan(), before = fitted;
    const moved = Math.abs(zoomer.getScale() - 1) > 1e-3 || x || y;
    fit();
    if (!moved) return;
    zoomTo(factor);
    zoomer.pan(x * fitted / before, y * fitted / before, { animate: false, force: true });
  }).observe(stage);
  // After dragging the divider, arrows go on to other pictures; whoever came by Tab moves it.
  for (const name of ["mouseup", "touchend"]) {
    window.addEventListener(name, () => { if (document.activeElement === slider) slider.blur(); });
  }

  const KEYS = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), d: toggleDifference,
    "+": () => $("in").click(), "=": () => $("in").click(), "-": () => $("out").click(),
    0: fit, 1: () => zoomTo(1),
    c: () => choose("right", (sides.right + 1) % COLUMNS.length),
  };
  const MOVES = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -perRow, ArrowDown: () => perRow };

  const PANS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

  function inViewer(event, typing) {
    const arrow = event.key.startsWith("Arrow");
    const onDivider = slider.contains(event.target) && event.target === handle;
    if (onDivider && moveDivider(event)) return;
    if (arrow && typing) return;  // the switch's own
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (arrow && (event.shiftKey || /Up|Down/.test(key))) {
      const [x, y] = PANS[key], by = 80 / zoomer.getScale();
      event.preventDefault();
      zoomer.pan(x * by, y * by, { relative: true, animate: false });
    } else if (KEYS[key]) {
      event.preventDefault();
      KEYS[key]();
    }
  }

  function moveDivider(event) {
    const by = (event.shiftKey ? 10 : 2) * (/Right|Up/.test(event.key) ? 1 : -1);
    const wanted = event.key.startsWith("Arrow") ? slider.value + by : { Home: 0, End: 100 }[event.key];
    if (wanted === undefined) return false;
    event.preventDefault();
    setDivider(Math.min(100, Math.max(0, wanted)));
    return true;
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (viewer.open) return inViewer(event, typing);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("search").focus();
      $("search").select();
    } else if (event.key === "Escape" && event.target === $("search")) {
      $("search").value = "";
      arrange();
    } else if (MOVES[event.key] && event.target.place !== undefined) {
      event.preventDefault();
      focusTile(event.target.place + MOVES[event.key]());
    } else if (event.key === "ArrowDown" && event.target === $("search") && shown.length) {
      event.preventDefault();
      focusTile(0);
    }
  });

  arrange();
  follow();
})();
