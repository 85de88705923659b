// compare.mjs SUITE RESULT EXPECTED [--bless]: compares the result of a run with the expected one. A line
// of EXPECTED has kind, outcome and name of a test. Prints the counts; exits with 1 at any difference.
//
// Outcomes, by the suite's rules: pass and fail; yes and no for a question (check); n/a if a test that
// it depends on has neither pass nor yes, or if its setup failed.
import { readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

const [suite, resultFile, expectedFile, bless] = process.argv.slice(2)
const result = JSON.parse(readFileSync(resultFile, 'utf8'))
const index = await import(pathToFileURL(resolve(join(suite, 'tests/index.mjs'))).href)
const tests = new Map(
  index.default.flatMap(group => group.tests)
    .filter(test => !test.browser_only && test.id in result)
    .map(test => [test.id, test])
)

function outcome (id) {
  const test = tests.get(id)
  if (!test) return 'n/a'
  const isGood = other => ['pass', 'yes'].includes(outcome(other))
  if (!(test.depends_on ?? []).every(isGood)) return 'n/a'
  const [good, bad] = test.kind === 'check' ? ['yes', 'no'] : ['pass', 'fail']
  if (result[id] === true) return good
  return ['Setup', 'AbortError'].includes(result[id][0]) ? 'n/a' : bad
}

const found = new Map([...tests].map(([id, test]) =>
  [id, `${test.kind ?? 'required'} ${outcome(id)} ${id}`]))
for (const kind of ['required', 'optimal', 'check']) {
  const counts = {}
  for (const line of found.values()) {
    const [of, what] = line.split(' ')
    if (of === kind) counts[what] = (counts[what] ?? 0) + 1
  }
  console.log(`${kind}: ${Object.entries(counts).map(([what, n]) => `${n} ${what}`).join(', ')}`)
}

if (bless) {
  const lines = [...found.values()].sort()
  writeFileSync(expectedFile, `# kind outcome test; written by run --bless\n${lines.join('\n')}\n`)
} else {
  const lines = readFileSync(expectedFile, 'utf8').split('\n').filter(line => line && !line.startsWith('#'))
  const expected = new Map(lines.map(line => [line.split(' ')[2], line]))
  let differ = 0
  for (const id of new Set([...expected.keys(), ...found.keys()])) {
    if (expected.get(id) === found.get(id)) continue
    differ++
    const why = result[id] === true ? '' : ` (${result[id]?.join(': ')})`
    console.log(`expected: ${expected.get(id) ?? 'nothing'}; found: ${found.get(id) ?? 'nothing'}${why}`)
  }
  process.exitCode = differ ? 1 : 0
}
