const paths = ['/style.css', '/logo.svg', '/data.json', '/slow', '/private'];
const rows = document.getElementById('rows');

async function row(path) {
  const started = performance.now();
  const response = await fetch(path, { cache: 'no-store' });
  await response.arrayBuffer();
  const cells = [
    path,
    response.headers.get('cache-control') ?? '–',
    `${(performance.now() - started).toFixed(1)} ms`,
    response.headers.get('cache-status') ?? '–',
  ];
  const tr = document.createElement('tr');
  for (const text of cells) tr.insertCell().textContent = text;
  return tr;
}

async function fill() {
  rows.replaceChildren(...await Promise.all(paths.map(row)));
}

document.getElementById('again').addEventListener('click', fill);
fill();
