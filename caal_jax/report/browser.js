"use strict";
// Paints the stored 8-bit layers of a case with the page's fixed colours, slice by slice, and sorts
// the gallery. Text from the data is only ever put in as text.
(() => {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const pictures = read("pictures");
  const scales = read("scales");
  const viewer = document.getElementById("viewer");
  const part = (name) => viewer.querySelector(`[data-part="${name}"]`);
  const canvas = part("canvas");
  const slider = part("slider");
  const toggles = [...viewer.querySelectorAll("[data-layer]")];
  const cards = [...gallery.children];
  const state = { card: null, picture: null, layers: {}, tile: 0, request: 0 };

  const pixels = async (source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    const sheet = document.createElement("canvas");
    sheet.width = image.naturalWidth;
    sheet.height = image.naturalHeight;
    const context = sheet.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, sheet.width, sheet.height);
  };

  const on = (name) => toggles.some((box) => box.dataset.layer === name && box.checked);

  const paint = () => {
    const { height, width, columns, slices, depth } = state.picture;
    const left = (state.tile % columns) * width;
    const top = Math.floor(state.tile / columns) * height;
    const tile = new ImageData(width, height);
    const image = on("image") ? state.layers.image : undefined;
    const maps = ["anomaly", "uncertainty"].filter((name) => on(name) && state.layers[name]);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const to = 4 * (row * width + column);
        for (let c = 0; c < 3; c++) {
          const from = image ? 4 * ((top + row) * image.width + left + column) + c : 0;
          tile.data[to + c] = image ? image.data[from] : 0;
        }
        tile.data[to + 3] = 255;
        maps.forEach((name, place) => {
          const layer = state.layers[name];
          const level = layer.data[4 * ((top + row) * layer.width + left + column)];
          // The lowest map is opaque where there is no image below it.
          const share = Math.min(1, 2 * scales[name].shares[level]);
          const alpha = image || place > 0 ? 0.85 * share : 1;
          for (let c = 0; c < 3; c++) {
            const colour = scales[name].colours[level][c];
            tile.data[to + c] += alpha * (colour - tile.data[to + c]);
          }
        });
      }
    }
    const small = document.createElement("canvas");
    small.width = width;
    small.height = height;
    small.getContext("2d").putImageData(tile, 0, 0);
    const zoom = Math.max(1, Math.floor(576 / Math.max(height, width)));
    canvas.width = zoom * width;
    canvas.height = zoom * height;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    if (on("truth") && state.layers.truth) outline(context, zoom, left, top);
    const text = depth > 1 ? `Slice ${slices[state.tile] + 1} of ${depth}` : "Single image";
    part("slice").textContent = text;
    slider.value = String(state.tile);
    slider.setAttribute("aria-valuetext", text);
    canvas.setAttribute("aria-label", `${state.card.dataset.name}, ${text}`);
  };

  const outline = (context, zoom, left, top) => {
    const { height, width } = state.picture;
    const layer = state.layers.truth;
    const inside = (row, column) =>
      row >= 0 && column >= 0 && row < height && column < width &&
      layer.data[4 * ((top + row) * layer.width + left + column)] > 127;
    context.beginPath();
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        if (!inside(row, column)) continue;
        const [x, y] = [column * zoom, row * zoom];
        if (!inside(row - 1, column)) { context.moveTo(x, y); context.lineTo(x + zoom, y); }
        if (!inside(row + 1, column)) { context.moveTo(x, y + zoom); context.lineTo(x + zoom, y + zoom); }
        if (!inside(row, column - 1)) { context.moveTo(x, y); context.lineTo(x, y + zoom); }
        if (!inside(row, column + 1)) { context.moveTo(x + zoom, y); context.lineTo(x + zoom, y + zoom); }
      }
    }
    // Dark below bright is seen on any background.
    for (const [colour, thick] of [["#000", 4], [`rgb(${scales.outline})`, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick;
      context.stroke();
    }
  };

  const show = async (card) => {
    const request = ++state.request;
    const picture = pictures[Number(card.dataset.index)];
    const names = Object.keys(picture.layers);
    const found = await Promise.all(names.map((name) => pixels(picture.layers[name])));
    if (request !== state.request) return; // another case was chosen meanwhile
    Object.assign(state, { card, picture, tile: picture.start });
    state.layers = Object.fromEntries(names.map((name, place) => [name, found[place]]));
    for (const box of toggles) box.disabled = !state.layers[box.dataset.layer];
    slider.max = String(picture.slices.length - 1);
    slider.disabled = picture.slices.length < 2;
    part("name").textContent = card.dataset.name;
    part("facts").textContent = card.querySelector(".facts").textContent;
    part("left-out").hidden = picture.slices.length === picture.depth;
    for (const other of cards) {
      other.querySelector("button").setAttribute("aria-pressed", String(other === card));
    }
    viewer.hidden = false;
    paint();
  };

  const move = (tile) => {
    const last = state.picture.slices.length - 1;
    const next = Math.max(0, Math.min(last, tile));
    const moved = next !== state.tile;
    state.tile = next;
    if (moved) paint();
    return moved;
  };

  const step = (by) => {
    const shown = [...gallery.children].filter((card) => !card.hidden);
    const next = shown[shown.indexOf(state.card) + by];
    if (next) show(next);
  };

  const arrange = () => {
    const key = document.getElementById("sort").value;
    const wanted = document.getElementById("filter").value;
    const value = (card) => (card.dataset[key] === "" ? -Infinity : Number(card.dataset[key]));
    const sorted = [...cards].sort((a, b) =>
      key === "name" ? a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true })
        : value(b) - value(a) || a.dataset.index - b.dataset.index);
    for (const card of sorted) {
      card.hidden = wanted !== "" && !card.dataset.tags.split(" ").includes(wanted);
    }
    gallery.append(...sorted);
    const count = cards.filter((card) => !card.hidden).length;
    document.getElementById("count").textContent = `${count} of ${cards.length} shown`;
  };

  const keys = {
    ArrowUp: () => move(state.tile + 1),
    ArrowRight: () => move(state.tile + 1),
    ArrowDown: () => move(state.tile - 1),
    ArrowLeft: () => move(state.tile - 1),
    PageUp: () => move(state.tile + 5),
    PageDown: () => move(state.tile - 5),
    Home: () => move(0),
    End: () => move(Infinity),
    n: () => step(1),
    p: () => step(-1),
  };
  for (const box of toggles) {
    keys[box.dataset.layer[0]] = () => { if (!box.disabled) box.click(); };
    box.addEventListener("change", paint);
  }
  viewer.addEventListener("keydown", (event) => {
    const action = keys[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
  slider.addEventListener("input", () => move(Number(slider.value)));
  canvas.addEventListener("wheel", (event) => {
    // At the last slice the wheel goes on scrolling the page.
    if (move(state.tile + (event.deltaY < 0 ? 1 : -1))) event.preventDefault();
  }, { passive: false });
  let dragged = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") return;
    dragged = { y: event.clientY, tile: state.tile };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged) move(dragged.tile + Math.round((dragged.y - event.clientY) / 6));
  });
  canvas.addEventListener("pointerup", () => { dragged = null; });
  canvas.addEventListener("pointercancel", () => { dragged = null; });
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  for (const card of cards) {
    card.querySelector("button").addEventListener("click", async () => {
      await show(card);
      viewer.scrollIntoView({ block: "nearest" });
      viewer.focus({ preventScroll: true });
    });
  }
  for (const name of ["sort", "filter"]) {
    document.getElementById(name).addEventListener("change", arrange);
  }
  document.getElementById("controls").hidden = false;
  arrange();
  if (gallery.firstElementChild) show(gallery.firstElementChild);
})();
