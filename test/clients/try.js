// Connects to a branch as a user of node-postgres would, and tries what drivers
// do in their own ways. Arguments: the URI, and the SQLSTATE that it is refused
// with, if it is.
'use strict'
const assert = require('node:assert')
const { Client, Pool } = require('pg')

async function refused(uri, state) {
  await assert.rejects(new Client({ connectionString: uri }).connect(), { code: state })
}

async function main(uri) {
  const client = new Client({ connectionString: uri })
  await client.connect()
  for (let i = 0; i < 20; i++) {
    const { rows } = await client.query({ name: 'plus', text: 'SELECT $1::int + 1 AS n', values: [i] })
    assert.strictEqual(rows[0].n, i + 1)
  }
  const many = await client.query("SELECT repeat('x', 1000) AS t FROM generate_series(1, 20000)")
  assert.strictEqual(many.rows.length, 20000)
  const heard = new Promise(resolve => client.on('notification', resolve))
  await client.query('LISTEN node')
  await client.query("NOTIFY node, 'hello'")
  const { payload, processId } = await heard
  assert.strictEqual(payload, 'hello')
  assert.strictEqual(processId, client.processID)
  await assert.rejects(client.query('SELECT nosuch'), { code: '42703' })
  await client.end()

  const pool = new Pool({ connectionString: uri, max: 5 })
  const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => pool.query('SELECT $1::int AS n', [i])))
  answers.forEach((a, i) => assert.strictEqual(a.rows[0].n, i))
  await pool.end()
}

const [uri, state] = process.argv.slice(2)
const run = state ? refused(uri, state) : main(uri)
run.then(() => console.log('ok'), err => { console.error(err); process.exitCode = 1 })
