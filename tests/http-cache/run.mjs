// Runs the public HTTP cache tests against a proxy, and says how it did.
//
//     node run.mjs origin SUITE                 the origin: prints its port, and serves until its standard input ends
//     node run.mjs tests SUITE PROXY [ID,..]    the tests, or some of them: prints one JSON object,
//                                               {"scores": {KIND: [passed, of]}, "missed": {ID: "KIND: WHY"}}
//
// SUITE is the folder of the suite: a checkout of github.com/http-tests/cache-tests with `undici` installed, or the npm package
// http-cache-tests beside `node-fetch`. PROXY is the URL of a proxy that passes everything on to the origin. The kinds are the suite's:
// required (what RFC 9111 demands), optimal (what a good cache does), check (which way a cache goes where it may choose).

import { existsSync } from 'node:fs'
import { Server } from 'node:net'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

const [mode, folder, proxy, ids] = process.argv.slice(2)
const suite = resolve(folder)
// The npm package is older than the folder test-engine.
const isPackage = !existsSync(join(suite, 'test-engine'))
const engine = isPackage ? suite : join(suite, 'test-engine')
const load = (...path) => import(pathToFileURL(join(...path)).href)

if (mode === 'origin') await serve()
else if (mode === 'tests') await test()
else throw new Error(`origin or tests, not ${mode}`)

async function serve () {
  // The suite would listen on every address of the machine, at a port of its own choice.
  const listen = Server.prototype.listen
  Server.prototype.listen = function () {
    return listen.call(this, { host: '127.0.0.1', port: 0 }, () => process.stdout.write(`${this.address().port}\n`))
  }
  console.log = () => {}
  Object.assign(process.env, { npm_config_protocol: 'http', npm_config_port: '8000', npm_config_pidfile: '/dev/null' })
  await load(engine, 'server', 'server.mjs')
  process.stdin.resume().on('end', () => process.exit())
}

async function test () {
  const all = (await load(suite, 'tests', 'index.mjs')).default
  const wanted = ids?.split(',')
  const suites = all.map(suite => ({ ...suite, tests: suite.tests.filter(test => wanted?.includes(test.id) ?? true) }))
  const { runTests, getResults } = await load(engine, 'client', 'runner.mjs')
  console.error = () => {}
  if (isPackage) {
    const { default: fetch } = await load(suite, '..', 'node-fetch', 'lib', 'index.js')
    await runTests(suites, fetch, false, proxy)
  } else {
    await runTests(suites, false, proxy)
  }

  const results = getResults()
  const tests = new Map(all.flatMap(suite => suite.tests).map(test => [test.id, test]))
  const scores = {}
  const missed = {}
  for (const test of suites.flatMap(suite => suite.tests)) {
    if (test.browser_only) continue
    const kind = test.kind ?? 'required'
    const score = (scores[kind] ??= [0, 0])
    score[1] += 1
    const why = verdict(test, results, tests)
    if (why === undefined) score[0] += 1
    else missed[test.id] = `${kind}: ${why}`
  }
  process.stdout.write(JSON.stringify({ scores, missed }) + '\n')
  process.exit()
}

// Why a test has not passed. It has not where one that it depends on has not, as the suite counts.
function verdict (test, results, tests) {
  for (const id of test.depends_on ?? []) {
    if (id in results && verdict(tests.get(id), results, tests) !== undefined) return `depends on ${id}`
  }
  const result = results[test.id]
  if (result === undefined) return 'not run'
  return result === true ? undefined : `${result[0]}: ${result[1]}`
}
