//! `shoal sql`: one statement, scripts, what ends a session, and what a follower says.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::prompt::{Terminal, skipped};
use crate::user::{
    Closed, LONG, fails, one_node, out, run, shoal, text, three_calm_nodes, three_nodes, works, works_in_time,
};

/// A session whose standard input, output and error are pipes.
fn session(data: &str) -> Child {
    let mut command = shoal(&["sql", "app", "--data", data]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a script from standard input.
fn script(data: &str, sql: &str) -> Output {
    let mut process = session(data);
    process.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    process.wait_with_output().unwrap()
}

fn reason(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn values_keep_their_types_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let sql = |sql: &str, more: &[&str]| works(&[&["sql", "app", sql, "--data", &data], more].concat());
    assert_eq!(sql("CREATE TABLE t(i INTEGER, r REAL, x, b BLOB)", &[]), "");
    assert_eq!(sql("INSERT INTO t VALUES (-1, 0.5, 'a,\"b', x'00ff'), (NULL, 9e999, 'ü', x'')", &[]), "");
    let all = "SELECT * FROM t";
    assert_eq!(sql(all, &[]), "-1|0.5|a,\"b|x'00ff'\n|Inf|ü|x''\n");
    assert_eq!(sql(all, &["--mode", "csv", "--headers"]), "i,r,x,b\n-1,0.5,\"a,\"\"b\",x'00ff'\n,Inf,ü,x''\n");
    assert_eq!(
        sql(all, &["--json"]),
        "[{\"i\":-1,\"r\":0.5,\"x\":\"a,\\\"b\",\"b\":\"00ff\"},\n{\"i\":null,\"r\":1e999,\"x\":\"ü\",\"b\":\"\"}]\n"
    );
    assert_eq!(sql("SELECT 1 AS a WHERE 0; SELECT 2 AS b", &["--json"]), "[]\n[{\"b\":2}]\n");
    assert_eq!(sql("SELECT i, x FROM t", &["--mode", "column", "--headers"]), "i   x\n--  ----\n-1  a,\"b\n    ü\n");
    assert_eq!(
        sql("SELECT i, x FROM t", &["--mode", "table"]),
        "+----+------+\n| i  |  x   |\n+----+------+\n| -1 | a,\"b |\n|    | ü    |\n+----+------+\n"
    );
    assert_eq!(sql("SELECT i, x FROM t", &["--mode", "line"]), "    i = -1\n    x = a,\"b\n\n    i = \n    x = ü\n");
    assert_eq!(sql("SELECT 9223372036854775807, typeof(1.0), 1.0", &[]), "9223372036854775807|real|1.0\n");
    // A text that is not UTF-8 is a text all the same.
    assert_eq!(sql("SELECT CAST(x'61ff62' AS TEXT)", &[]), "a\u{fffd}b\n");
}

#[test]
fn boxes_markdown_and_literals_are_those_of_the_sqlite_shell() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let sql = |sql: &str, more: &[&str]| works(&[&["sql", "app", sql, "--data", &data], more].concat());
    sql("CREATE TABLE t(i INTEGER, long REAL, [a|b], \"order\" BLOB)", &[]);
    sql("INSERT INTO t VALUES (-1, 0.5, 'c|''d', x'00ff'), (NULL, -9e999, 'ü' || char(10, 9) || '2', x'')", &[]);
    sql("INSERT INTO t VALUES (7, 1e300, CAST(x'610062' AS TEXT), CAST(x'61ff' AS TEXT))", &[]);
    let two = "SELECT i, [a|b] FROM t LIMIT 2";
    assert_eq!(
        sql(two, &["--mode", "box"]),
        "┌────┬───────┐\n│ i  │  a|b  │\n├────┼───────┤\n│ -1 │ c|'d  │\n│    │ ü\\n\t2 │\n└────┴───────┘\n"
    );
    assert_eq!(
        sql(two, &["--mode", "markdown"]),
        "| i  | a\\|b  |\n|----|-------|\n| -1 | c\\|'d |\n|    | ü\\n\t2 |\n"
    );
    assert_eq!(sql("SELECT 1 WHERE 0", &["--mode", "box"]), "");
    let all = "SELECT * FROM t";
    assert_eq!(
        sql(all, &["--mode", "quote", "--headers"]),
        "'i','long','a|b','order'\n-1,0.5,'c|''d',X'00ff'\nNULL,-9e999,'ü\n\t2',X''\n\
         7,1e300,CAST(X'610062' AS TEXT),CAST(X'61ff' AS TEXT)\n"
    );
    let rows = script(&data, &format!(".mode insert 't 2'\n{all} LIMIT 1;\n.headers on\n.mode insert\n{all} LIMIT 1;"));
    assert_eq!(
        out(&rows),
        "INSERT INTO \"t 2\" VALUES(-1,0.5,'c|''d',X'00ff');\n\
         INSERT INTO \"table\"(i,long,\"a|b\",\"order\") VALUES(-1,0.5,'c|''d',X'00ff');\n"
    );
    // What is printed is the same again when it is run.
    let inserts = script(&data, &format!(".headers on\n.mode insert u\n{all};"));
    let copied = script(&data, &format!("CREATE TABLE u AS SELECT * FROM t WHERE 0;\n{}", out(&inserts)));
    assert_eq!(copied.status.code(), Some(0), "{}", reason(&copied));
    let differ = "SELECT count(*), (SELECT count(*) FROM (SELECT * FROM t EXCEPT SELECT * FROM u)), \
                  (SELECT count(*) FROM t JOIN u USING (i) WHERE typeof(t.[a|b]) = typeof(u.[a|b])) FROM u";
    assert_eq!(sql(differ, &[]), "3|0|2\n");
    assert!(reason(&script(&data, ".mode box t")).contains(".mode: only insert has a table, \"t\" is too much"));
    assert!(reason(&script(&data, ".mode boxes")).contains(".mode: one of list, column, csv"));
}

/// Such a statement printed a line without anything for each row, and in JSON an array that was never closed.
#[test]
fn rows_without_columns_are_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["db", "create", "app", "--auto-vacuum", "incremental", "--data", &data]);
    for mode in
        ["list", "column", "csv", "json", "line", "table", "box", "markdown", "quote", "insert", "tabs", "ascii"]
    {
        works(&[
            "sql",
            "app",
            "CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(50000)); DROP TABLE t",
            "--data",
            &data,
        ]);
        let free = works(&["sql", "app", "PRAGMA freelist_count", "--data", &data]);
        assert!(free.trim().parse::<u32>().unwrap() > 5, "{free}");
        let printed = works(&["sql", "app", "PRAGMA incremental_vacuum", "--mode", mode, "--headers", "--data", &data]);
        assert_eq!(printed, "", "{mode}");
        // All of its steps were done.
        assert_eq!(works(&["sql", "app", "PRAGMA freelist_count", "--data", &data]), "0\n", "{mode}");
    }
}

/// A file that was cut off in the middle was imported as if it were whole.
#[test]
fn a_quote_that_is_not_closed_is_no_end_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let path = text(&dir.path().join("rows.csv"));
    works(&["sql", "app", "CREATE TABLE t(a, b)", "--data", &data]);
    for (content, place) in [
        ("1,2\n3,\"4", "line 2"),
        ("1,2\n\n\"three\nlines\nhere\",\"4\n5,6\n7,8\n", "line 5"),
        ("1,\"", "line 1"),
        ("1,\"2\"\"", "line 1"),
        ("1,\"2\"\"\nx\n", "line 1"),
    ] {
        std::fs::write(&path, content).unwrap();
        let refused = script(&data, &format!(".import {path} t"));
        assert_eq!(refused.status.code(), Some(1), "{content:?}");
        let said = format!("rows.csv: {place}: a quote that begins here is not closed; nothing was imported\n");
        assert!(reason(&refused).ends_with(&said), "{content:?}: {}", reason(&refused));
    }
    std::fs::write(&path, "1:2!3:\"4!").unwrap();
    let refused = script(&data, &format!(".separator : !\n.import {path} t"));
    assert!(reason(&refused).contains("row 2: a quote that begins here is not closed"), "{}", reason(&refused));
    let refused = script(&data, &format!(".separator : !\n.import --skip 2 {path} t"));
    assert!(reason(&refused).contains("row 2: a quote that begins here is not closed"), "{}", reason(&refused));
    // Nor are the many lines behind it kept to find that out.
    let mut huge = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    write!(huge, "1,2\n3,\"").unwrap();
    (0..5_000_000).for_each(|n| writeln!(huge, "{n},4").unwrap());
    writeln!(huge, "\"").unwrap();
    drop(huge);
    let refused = script(&data, &format!(".import {path} t"));
    let said = "line 2: a row of more than 16777216 bytes; is a quote in it not closed?; nothing was imported\n";
    assert!(reason(&refused).ends_with(said), "{}", reason(&refused));
    assert_eq!(works(&["sql", "app", "SELECT count(*) FROM t", "--data", &data]), "0\n");
    // These all end where they should.
    for (content, rows) in [
        ("1,2", "1|2\n"),
        ("1,\"2\"", "1|2\n"),
        ("1,\"2\"\"\"\r\n", "1|2\"\n"),
        ("1,2\"\n\n\n", "1|2\"\n"),
        ("1,\n", "1|\n"),
        ("1,", "1|\n"),
        ("", ""),
        ("\n", ""),
    ] {
        std::fs::write(&path, content).unwrap();
        let done = script(&data, &format!("BEGIN;\n.import {path} t\nSELECT * FROM t;\nDELETE FROM t;\nCOMMIT;"));
        assert_eq!(out(&done), rows, "{content:?}: {}", reason(&done));
    }
    for (content, separators) in [("1:2!3:4", ": !"), ("1x2y3x4", "x y"), ("1y2x3y4x", "y x")] {
        std::fs::write(&path, content).unwrap();
        let import =
            format!("BEGIN;\n.separator {separators}\n.import {path} t\n.mode list\nSELECT * FROM t;\nROLLBACK;");
        let done = script(&data, &import);
        assert_eq!(out(&done), "1|2\n3|4\n", "{content}: {}", reason(&done));
    }
}

#[test]
fn what_sqlite_says_of_a_row_names_its_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let path = text(&dir.path().join("rows.csv"));
    works(&["sql", "app", "CREATE TABLE t(a PRIMARY KEY, b); CREATE VIEW v AS SELECT * FROM t", "--data", &data]);
    let said = |import: &str| reason(&script(&data, import));
    std::fs::write(&path, "1,x\n2,\"y\ny\"\n\n1,z\n").unwrap();
    let refused = said(&format!(".import {path} t"));
    let unique = "rows.csv: line 5: UNIQUE constraint failed: t.a; nothing was imported\n";
    assert!(refused.ends_with(unique), "{refused}");
    // Behind the first piece that goes to the node.
    let good: String = (0..20_000).map(|n| format!("{n},a name of some length\n")).collect();
    std::fs::write(&path, format!("{good}7,seven\n")).unwrap();
    let refused = said(&format!(".import {path} t"));
    assert!(refused.contains("rows.csv: line 20001: UNIQUE constraint failed: t.a; nothing"), "{refused}");
    std::fs::write(&path, "1:2!1:3!").unwrap();
    let refused = said(&format!(".separator : !\n.import {path} t"));
    assert!(refused.contains("rows.csv: row 2: UNIQUE constraint failed"), "{refused}");
    std::fs::write(&path, "a,A\n").unwrap();
    let refused = said(&format!(".import {path} fresh"));
    assert!(refused.contains("rows.csv: line 1: duplicate column name: A"), "{refused}");
    let refused = said(&format!(".import {path} v"));
    assert!(refused.contains("rows.csv: cannot modify v because it is a view"), "{refused}");
}

/// As in SQLite's shell, where a script that finds something amiss says so.
#[test]
fn a_script_ends_with_the_code_that_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let ended = |lines: &str| {
        let done = script(&data, lines);
        (done.status.code().unwrap(), out(&done), reason(&done))
    };
    let new = "note: there is no database app yet; the first write creates it\n";
    for (line, code) in [(".exit 3", 3), (".exit 0", 0), (".exit", 0), (".ex 255", 255), (".quit", 0)] {
        assert_eq!(
            ended(&format!("SELECT 1;\n{line}\nSELECT 2;\n")),
            (code, "1\n".to_string(), new.to_string()),
            "{line}"
        );
    }
    let file = dir.path().join("ends.sql");
    std::fs::write(&file, ".exit 7\n").unwrap();
    assert_eq!(ended(&format!(".read {}\nSELECT 1;", text(&file))).0, 7);
    assert_eq!(run(&["sql", "app", ".exit 9", "--data", &data]).status.code(), Some(9));
    // That something was left open is told besides.
    let (code, _, said) = ended("BEGIN;\n.exit 3");
    assert!(code == 3 && said.contains("is rolled back, nothing of it is committed"), "{code}: {said}");
    assert_eq!(ended("BEGIN;\n.exit 0").0, 1);
    for wrong in [".exit three", ".exit 256", ".exit -1", ".exit 1 2", ".quit 3"] {
        let (code, _, said) = ended(wrong);
        assert!(code == 1 && said.contains("write .exit, or .exit CODE"), "{wrong}: {code}: {said}");
    }
}

/// `.separator` and the modes that are about separators are for what is printed and for what is read.
#[test]
fn what_is_printed_with_a_separator_is_imported_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let path = text(&dir.path().join("rows"));
    works(&["sql", "app", "CREATE TABLE t(a, b); INSERT INTO t VALUES ('1', 'x,y'), ('2', '')", "--data", &data]);
    let all = "SELECT * FROM t";
    for (set, printed) in [
        (".separator ';'", "1;x,y\n2;\n"),
        (".separator '\\t'", "1\tx,y\n2\t\n"),
        (".mode tabs", "1\tx,y\n2\t\n"),
        (".mode ascii", "1\u{1f}x,y\u{1e}2\u{1f}\u{1e}"),
        (".separator : !", "1:x,y!2:!"),
        (".mode csv", "1,\"x,y\"\n2,\n"),
        (".mode csv\n.separator ;", "1;x,y\n2;\n"),
        // As it always was.
        ("", "1|x,y\n2|\n"),
        // A mode has the separators that belong to it.
        (".separator ;\n.mode list", "1|x,y\n2|\n"),
    ] {
        let rows = script(&data, &format!("{set}\n{all};"));
        assert_eq!(out(&rows), printed, "{set}: {}", reason(&rows));
        if printed.contains('|') {
            continue;
        }
        std::fs::write(&path, printed).unwrap();
        let again =
            format!("CREATE TABLE u(a, b);\n{set}\n.import {path} u\n.mode list\nSELECT * FROM u;\nDROP TABLE u;");
        let again = script(&data, &again);
        assert_eq!(out(&again), "1|x,y\n2|\n", "{set}: {}", reason(&again));
    }
    // What is said at the command counts, and without a word it is commas.
    std::fs::write(&path, "a,b\n1,\"x\ny\"\n2,\n3\n").unwrap();
    let import = format!(".separator ;\n.import --csv --skip 1 {path} t");
    assert!(reason(&script(&data, &import)).contains("line 5: 1 values for 2 columns; nothing was imported"));
    std::fs::write(&path, "3\u{1f}\"\u{1e}4\u{1f}5\u{1f}6\u{1e}").unwrap();
    assert!(reason(&script(&data, &format!(".import --ascii {path} t"))).contains("row 2: 3 values for 2 columns"));
    let quote = format!(".separator \"::\"\n.import {path} t");
    assert!(
        reason(&script(&data, &quote))
            .contains(".import: the separator of columns is \"::\", and must be one character")
    );
    assert!(reason(&script(&data, ".separator")).contains("write .separator COLUMN"));
    assert!(reason(&script(&data, ".separator \\q")).contains("behind a backslash"));
}

#[test]
fn a_script_runs_up_to_its_first_error() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let done = script(
        &data,
        "CREATE TABLE t(x);\n-- a comment; with a semicolon\nINSERT INTO t\n VALUES (1), (2);\n.headers on\nSELECT x FROM t;\n.tables\n\
         CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET x = x; END; SELECT count(*) AS n FROM t",
    );
    assert_eq!((done.status.code(), out(&done).as_str()), (Some(0), "x\n1\n2\nt\nn\n2\n"), "{}", reason(&done));
    let broken = script(&data, "INSERT INTO t VALUES (3);\nSELECT * FROM nowhere;\nINSERT INTO t VALUES (4);\n");
    assert_eq!((broken.status.code(), out(&broken).as_str()), (Some(1), ""));
    assert_eq!(reason(&broken), "shoal: stdin:2: no such table: nowhere\n");
    assert_eq!(works(&["sql", "app", "SELECT max(x) FROM t", "--data", &data]), "3\n");
    // A transaction that is open when the script ends is rolled back.
    for end in ["", "\n.quit\nSELECT 1;"] {
        let open = script(&data, &format!("BEGIN; INSERT INTO t VALUES (5);{end}"));
        let said = "shoal: the transaction that was open at the end is rolled back, nothing of it is committed; end it with COMMIT\n";
        assert_eq!((open.status.code(), out(&open).as_str(), reason(&open).as_str()), (Some(1), "", said));
    }
    assert!(fails(&["sql", "app", "BEGIN; INSERT INTO t VALUES (5)", "--data", &data], 1).contains("is rolled back"));
    assert_eq!(works(&["sql", "app", "SELECT max(x) FROM t", "--data", &data]), "3\n");
    assert!(reason(&script(&data, ".nothing")).contains("stdin:1: .nothing: no such command"));
    assert_eq!(out(&script(&data, "SELECT 1;\n.quit\nSELECT 2;\n")), "1\n");
    // SQLite reads up to a zero, and what came behind it was left out without a word.
    let zero = script(&data, "SELECT 1;\nSELECT 2;\0 INSERT INTO t VALUES (9);\nINSERT INTO t VALUES (9);\n");
    assert_eq!((zero.status.code(), out(&zero).as_str()), (Some(1), "1\n2\n"));
    let said = "stdin:2: byte 0 of the statement is a zero, behind which SQLite reads nothing";
    assert!(reason(&zero).contains(said), "{}", reason(&zero));
    assert_eq!(works(&["sql", "app", "SELECT max(x) FROM t", "--data", &data]), "3\n");
    // Larger than what a node takes at once.
    let large = script(&data, &format!("SELECT length('{}');", "x".repeat(17 << 20)));
    assert_eq!(large.status.code(), Some(1));
    assert!(reason(&large).contains("limit 16777216; nothing was done"), "{}", reason(&large));
}

#[test]
fn files_are_read_and_imported_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let file = |name: &str, content: &str| {
        std::fs::write(dir.path().join(name), content).unwrap();
        text(&dir.path().join(name))
    };
    let good = file("good.csv", "id,name\n1,\"a, \"\"b\"\"\"\n2,\n");
    let done = script(&data, &format!(".import {good} people\nSELECT id, name, typeof(name) FROM people;"));
    assert_eq!(out(&done), "1|a, \"b\"|text\n2||text\n", "{}", reason(&done));
    // The table is there now, and its first line is one of names.
    assert_eq!(script(&data, &format!(".import --skip 1 '{good}' people")).status.code(), Some(0));
    let bad = file("bad.csv", "3,x\n4\n");
    let refused = script(&data, &format!(".import {bad} people"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(reason(&refused).contains("line 2: 1 values for 2 columns; nothing was imported"), "{}", reason(&refused));
    let inner = file("inner.sql", "SELECT count(*) FROM people;\n.quit\n");
    let outer = file("outer.sql", &format!(".read {inner}\nSELECT 'not reached';\n"));
    assert_eq!(out(&script(&data, &format!(".read {outer}\n"))), "4\n");
    let broken = file("broken.sql", "SELECT 1;\nSELECT x;\n");
    assert!(reason(&script(&data, &format!(".read {broken}"))).contains("broken.sql:2: no such column: x"));
    assert!(reason(&script(&data, ".read /does/not/exist")).contains("/does/not/exist"));
    let itself = dir.path().join("loop.sql");
    file("loop.sql", &format!(".read {}\n", text(&itself)));
    assert!(reason(&script(&data, &format!(".read {}", text(&itself)))).contains("sixteen deep"));
    // More than one piece.
    let lines: String = (0..100_000).map(|n| format!("{n},a name of some length\n")).collect();
    let large = file("large.csv", &lines);
    let sum = "SELECT count(*), sum(CAST(id AS INTEGER)) FROM big;";
    let done = script(&data, &format!("CREATE TABLE big(id, name);\n.import {large} big\n{sum}"));
    assert_eq!(out(&done), "100000|4999950000\n", "{}", reason(&done));
}

/// Within a transaction that is open an import once left behind what it had sent already, and the table that it had created,
/// and said all the same that nothing was imported. The bad line is behind the first piece that goes to the node.
#[test]
fn an_import_that_fails_leaves_an_open_transaction_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let file = dir.path().join("bad.csv");
    let good: String = (0..20_000).map(|n| format!("{n},a name of some length\n")).collect();
    std::fs::write(&file, format!("id,name\n{good}short\n")).unwrap();
    let bad = text(&file);
    works(&["sql", "app", "CREATE TABLE t(id, name)", "--data", &data]);
    for (table, left) in [("t", "1\n"), ("fresh", "1\n")] {
        let mut open = Waiting::begin(&data, "BEGIN; INSERT INTO t VALUES ('before', 1)");
        writeln!(open.stdin, ".import {bad} {table}").unwrap();
        let (code, reason) = open.end();
        assert_eq!(code, Some(1), "{reason}");
        assert!(reason.contains("line 20002: 1 values for 2 columns; nothing was imported\n"), "{reason}");
        // A script ends there. At the prompt one goes on in the same transaction.
        let Some(mut terminal) = Terminal::open(&data, &dir.path().join("history")) else { return skipped() };
        terminal.asks();
        for line in ["BEGIN;", "INSERT INTO t VALUES ('before', 1);"] {
            terminal.types(&format!("{line}\r"));
            terminal.asks_within();
        }
        terminal.types(&format!(".import {bad} {table}\r"));
        terminal.shows("nothing was imported\r\n");
        terminal.asks_within();
        terminal.types("COMMIT;\r");
        terminal.asks();
        terminal.types(".quit\r");
        assert_eq!(terminal.ended(), Some(0));
        assert_eq!(works(&["sql", "app", "SELECT count(*) FROM t; DELETE FROM t", "--data", &data]), left);
        assert_eq!(works(&["sql", "app", ".tables", "--data", &data]), "t\n");
    }
    // One of its own ends nothing else either.
    let refused = script(&data, &format!(".import {bad} t"));
    assert!(reason(&refused).contains("nothing was imported\n"), "{}", reason(&refused));
    assert_eq!(works(&["sql", "app", "SELECT count(*) FROM t", "--data", &data]), "0\n");
    // A constraint that rolls everything back is told as what it is.
    works(&["sql", "app", "CREATE TABLE once(id UNIQUE ON CONFLICT ROLLBACK, name)", "--data", &data]);
    std::fs::write(&file, "1,a\n1,b\n").unwrap();
    let mut open = Waiting::begin(&data, "BEGIN; INSERT INTO t VALUES ('before', 1)");
    writeln!(open.stdin, ".import {bad} once").unwrap();
    let (_, reason) = open.end();
    assert!(reason.contains("UNIQUE") && reason.contains("the transaction that was open is rolled back"), "{reason}");
}

/// Only the bytes of values were counted once, of which these lines have none: all of them went to the node at once, which was
/// more than it takes.
#[test]
fn lines_of_empty_values_are_sent_in_pieces_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let file = dir.path().join("sparse.csv");
    let names: Vec<String> = (0..600).map(|n| format!("c{n}")).collect();
    let line = format!("{}\n", ",".repeat(599));
    std::fs::write(&file, format!("{}\n{}", names.join(","), line.repeat(10_000))).unwrap();
    let done = script(&data, &format!(".import {} sparse\nSELECT count(*) FROM sparse;", text(&file)));
    assert_eq!(out(&done), "10000\n", "{}", reason(&done));
}

#[test]
fn the_schema_is_printed_as_statements_and_a_run_is_timed_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let made = ["CREATE TABLE t(a PRIMARY KEY, b)", "CREATE TABLE other(x)", "CREATE INDEX by_b ON t(b)"];
    let more = ["CREATE VIEW v AS SELECT a FROM t", "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END"];
    let all: String = made.iter().chain(&more).map(|sql| format!("{sql};\n")).collect();
    assert_eq!(script(&data, &all).status.code(), Some(0));
    // What SQLite makes by itself has no statement.
    assert_eq!(works(&["sql", "app", ".schema", "--data", &data]), all);
    let of_t = format!("{};\n{};\n{};\n", made[0], made[2], more[1]);
    assert_eq!(works(&["sql", "app", ".schema t", "--data", &data]), of_t);
    assert_eq!(works(&["sql", "app", ".schema b%", "--data", &data]), format!("{};\n", made[2]));

    let timed = script(&data, "SELECT 1;\n.timer on\nSELECT 2;\nSELECT 3; SELECT 4;\n.timer off\nSELECT 5;\n");
    assert_eq!((timed.status.code(), out(&timed).as_str()), (Some(0), "1\n2\n3\n4\n5\n"));
    let said = reason(&timed);
    let is_time = |line: &str| {
        let time = line.strip_prefix("Run Time: real ").map(str::parse::<f64>);
        time.is_some_and(|time| time.is_ok_and(|time| (0.0..60.0).contains(&time)))
    };
    assert!(said.lines().count() == 3 && said.lines().all(is_time), "{said}");
    // One that fails took time as well.
    let failed = script(&data, ".timer on\nSELECT * FROM nowhere;\n");
    assert!(reason(&failed).lines().next().is_some_and(is_time), "{}", reason(&failed));
    assert!(reason(&script(&data, ".timer perhaps\n")).contains("write .timer on, or .timer off"));
}

/// A query without end that has printed its first row.
struct Endless {
    process: std::process::Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Endless {
    fn begin(data: &str, before: &str) -> Endless {
        let sql = format!(
            "{before}; SELECT 'begun' UNION ALL SELECT max(x) FROM (WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) \
             SELECT x FROM c)"
        );
        let mut process =
            shoal(&["sql", "app", &sql, "--data", data]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        Endless { process, stdout }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        let mut reason = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut reason).unwrap();
        (self.process.wait().unwrap().code(), reason)
    }
}

#[test]
fn ctrl_c_interrupts_what_runs_and_the_node_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let endless = Endless::begin(&data, "BEGIN; INSERT INTO t VALUES (1)");
    endless.signal(Signal::INT);
    assert_eq!(endless.end(), (Some(1), "shoal: interrupted\n".to_string()));
    assert_eq!(works(&["sql", "app", "SELECT count(*) FROM t", "--data", &data]), "0\n");
    assert_eq!(node.terminate(), 0);
}

#[test]
fn a_session_whose_caller_is_gone_ends_and_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let endless = Endless::begin(&data, "BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
    endless.signal(Signal::KILL);
    endless.end();
    // The write lock is free, although that query has no end, and its row is gone.
    works(&["sql", "app", "INSERT INTO t VALUES (2)", "--data", &data]);
    assert_eq!(works(&["sql", "app", "SELECT x FROM t", "--data", &data]), "2\n");
    // A reader that wants no more ends it as well, and that is no failure.
    let mut head = shoal(&[
        "sql",
        "app",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
        "--data",
        &data,
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut line = String::new();
    BufReader::new(head.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), head.wait().unwrap().code()), ("1\n", Some(0)));
    // A node that ends does not wait for the sessions that it has, and they know what became of what they did.
    let endless = Endless::begin(&data, "SELECT 1 WHERE 0");
    assert_eq!(node.terminate(), 0);
    let (code, reason) = endless.end();
    assert_eq!(code, Some(1), "{reason}");
    assert!(reason.contains("shutting down") && reason.contains("rolled back"), "{reason}");
}

/// A session from a script whose end is not there yet.
pub(crate) struct Waiting {
    process: std::process::Child,
    stdin: std::process::ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Waiting {
    pub(crate) fn begin(data: &str, sql: &str) -> Waiting {
        let mut process = session(data);
        let (mut stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        // The shell's own words come when the node is done with what stands before them.
        writeln!(stdin, "{sql};\n.help").unwrap();
        let mut waiting = Waiting { process, stdin, stdout: BufReader::new(stdout) };
        let mut line = String::new();
        while !line.starts_with("Statements end with a semicolon.") {
            line.clear();
            assert!(waiting.stdout.read_line(&mut line).unwrap() > 0, "it ended");
        }
        waiting
    }

    /// Types a line, and waits for nothing.
    pub(crate) fn types(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    pub(crate) fn end(self) -> (Option<i32>, String) {
        drop(self.stdin);
        let done = self.process.wait_with_output().unwrap();
        (done.status.code(), reason(&done))
    }
}

#[test]
fn sessions_are_limited_and_one_more_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let mut sessions: Vec<Waiting> = (0..16).map(|_| Waiting::begin(&data, "SELECT 1 WHERE 0")).collect();
    let reason = fails(&["sql", "app", "SELECT 1", "--data", &data], 1);
    assert!(reason.contains("16 sessions already"), "{reason}");
    // Questions are not sessions, and tell how many there are.
    works(&["health", "--data", &data]);
    let status: serde_json::Value = serde_json::from_str(&works(&["status", "--json", "--data", &data])).unwrap();
    assert_eq!(status[0]["status"]["sessions"], serde_json::json!({ "now": 16, "limit": 16 }), "{status}");
    assert_eq!(status[0]["status"]["connections"]["limit"], 1024, "{status}");
    assert_eq!(sessions.pop().unwrap().end().0, Some(0));
    let deadline = Instant::now() + LONG;
    while run(&["sql", "app", "SELECT 1", "--data", &data]).status.code() != Some(0) {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn an_idle_transaction_is_ended_before_an_idle_session() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &["--session-idle", "2s"]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let mut forgotten = Waiting::begin(&data, "BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
    // Waits until the write lock is free: until that session was ended.
    works(&["sql", "app", "INSERT INTO t VALUES (2)", "--data", &data]);
    writeln!(forgotten.stdin, "COMMIT;").unwrap();
    let (code, reason) = forgotten.end();
    assert_eq!(code, Some(1), "{reason}");
    assert!(reason.contains("nothing was asked of it for 200ms; its transaction is rolled back"), "{reason}");
    assert_eq!(works(&["sql", "app", "SELECT x FROM t", "--data", &data]), "2\n");
    // As many as there may be; there is room for one more when they were ended.
    let mut idle: Vec<Waiting> = (0..16).map(|_| Waiting::begin(&data, "SELECT 1 WHERE 0")).collect();
    let deadline = Instant::now() + LONG;
    while run(&["sql", "app", "SELECT 1", "--data", &data]).status.code() != Some(0) {
        assert!(Instant::now() < deadline);
    }
    let mut first = idle.remove(0);
    writeln!(first.stdin, "SELECT 1;").unwrap();
    let (code, reason) = first.end();
    assert_eq!((code, reason.contains("nothing was asked of it for 2s\n")), (Some(1), true), "{reason}");
}

/// Others waited for as long as a session may be idle, and by reading a little now and then its caller could make that endless. All
/// that the caller heard was that the node went away and that nobody knows what became of the statement.
#[test]
fn a_caller_that_does_not_read_keeps_the_write_lock_for_a_tenth_of_the_idle_time_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    // Others wait for less than a session may be idle.
    let (node, data) = one_node(dir.path(), &["--session-idle", "20s", "--busy-timeout", "15s"]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let many = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3000)";
    let in_transaction =
        format!("BEGIN IMMEDIATE; INSERT INTO t VALUES (1); {many} SELECT x, hex(zeroblob(2000)) FROM c; COMMIT");
    let returning = format!("{many} INSERT INTO t SELECT x FROM c RETURNING x, hex(zeroblob(2000))");
    for (sql, pace) in [(&in_transaction, None), (&in_transaction, Some(Duration::from_millis(50))), (&returning, None)]
    {
        let mut reader = shoal(&["sql", "app", sql, "--data", &data]);
        let mut reader = reader.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = reader.stdout.take().unwrap();
        // It has begun.
        stdout.read_exact(&mut [0; 2]).unwrap();
        let mut other = shoal(&["sql", "app", "INSERT INTO t VALUES (2)", "--data", &data]);
        let mut other = other.stderr(Stdio::piped()).spawn().unwrap();
        let done = match pace {
            None => other.wait().unwrap(),
            // Less at a time than the node writes at once.
            Some(pace) => loop {
                match other.try_wait().unwrap() {
                    Some(done) => break done,
                    None => stdout.read_exact(&mut [0; 4096]).unwrap(),
                }
                std::thread::sleep(pace);
            },
        };
        let mut said = String::new();
        other.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(done.success(), "{sql}: {said}");
        std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
        let ended = reader.wait_with_output().unwrap();
        let said = reason(&ended);
        assert!(
            said.contains("for 2s in all until its answer would be read; its transaction is rolled back"),
            "{said}"
        );
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(node.wait_line("a SQL session on database app was ended").contains("for 2s in all"));
        assert_eq!(works(&["sql", "app", "SELECT x FROM t; DELETE FROM t", "--data", &data]), "2\n");
    }
}

#[test]
fn a_caller_that_reads_nothing_of_an_answer_hears_that_its_session_ended_for_that() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &["--session-idle", "300ms"]);
    let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x, hex(zeroblob(2000)) FROM c";
    let mut reader = shoal(&["sql", "app", sql, "--data", &data]);
    let mut reader = reader.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    node.wait_line(
        "a SQL session on database app was ended: the session ended: nothing of its answer was read for 300ms",
    );
    std::io::copy(&mut reader.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
    let ended = reader.wait_with_output().unwrap();
    let said = "shoal: the session ended: nothing of its answer was read for 300ms\n";
    assert!(ended.status.code() == Some(1) && reason(&ended).ends_with(said), "{ended:?}");
}

/// SQLite commits a statement that is left before its end, unless it was interrupted: the rows of a caller that had died amid
/// those of RETURNING were there.
#[test]
fn rows_of_a_caller_that_dies_before_it_has_read_them_are_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3000) \
               INSERT INTO t SELECT x FROM c RETURNING x, hex(zeroblob(2000))";
    for _ in 0..5 {
        let mut reader = shoal(&["sql", "app", sql, "--data", &data]).stdout(Stdio::piped()).spawn().unwrap();
        reader.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        reader.kill().unwrap();
        reader.wait().unwrap();
        // Waits for the write lock.
        works(&["sql", "app", "INSERT INTO t VALUES (0)", "--data", &data]);
        assert_eq!(works(&["sql", "app", "SELECT count(*) FROM t; DELETE FROM t", "--data", &data]), "1\n");
    }
}

/// Bytes of memory that are a process's own.
fn memory(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A result without end that nobody reads: the node stops making it, and keeps little of it.
#[test]
fn rows_that_nobody_reads_are_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    let before = memory(node.pid());
    let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x, hex(zeroblob(5000)) FROM c";
    let mut reader = shoal(&["sql", "app", sql, "--data", &data]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(reader.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    // When it stopped, its processor time stands still.
    let mut still = 0;
    let mut used = node.processor_time();
    let deadline = Instant::now() + LONG;
    while still < 20 {
        std::thread::sleep(Duration::from_millis(20));
        let now = node.processor_time();
        still = if now <= used + 1 { still + 1 } else { 0 };
        used = now;
        assert!(memory(node.pid()) < before + (64 << 20), "memory grows");
        assert!(Instant::now() < deadline, "it never stops");
    }
    // And it goes on when they are read.
    for number in 2..2000 {
        line.clear();
        stdout.read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("{number}|")), "{number}");
    }
    drop(stdout);
    assert_eq!(reader.wait().unwrap().code(), Some(0));
}

#[test]
fn a_row_that_is_too_large_is_refused_and_the_session_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    let reason = fails(&["sql", "app", "SELECT 1, zeroblob(40000000)", "--data", &data], 1);
    assert!(reason.contains("limit 33554432: select parts of it"), "{reason}");
    let reason = fails(&["sql", "app", "SELECT zeroblob(16000000), zeroblob(16000000)", "--data", &data], 1);
    assert!(reason.contains("limit 33554432"), "{reason}");
    assert_eq!(works(&["sql", "app", "SELECT length(zeroblob(40000000))", "--data", &data]), "40000000\n");
    assert_eq!(works(&["sql", "app", "SELECT zeroblob(8000000)", "--data", &data]).len(), 16_000_004);
}

#[test]
fn a_path_and_a_name_that_does_not_exist_are_told_apart_from_databases() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x); INSERT INTO t VALUES (7)", "--data", &data]);
    let file = text(&dir.path().join("plain.db"));
    for sql in [format!("ATTACH '{file}' AS p"), format!("VACUUM INTO '{file}'")] {
        let reason = fails(&["sql", "app", &sql, "--data", &data], 1);
        assert!(reason.contains(&format!("'file:{file}?vfs=unix'")), "{reason}");
    }
    let into = format!("VACUUM INTO 'file:{file}?vfs=unix'");
    works(&["sql", "app", &into, "--data", &data]);
    // A file that is there, and a name of the cluster, which is never there: it was "output file already exists" alone.
    for sql in [&into, "VACUUM INTO 'plain.db'", "VACUUM INTO 'file:plain.db'"] {
        let reason = fails(&["sql", "app", sql, "--data", &data], 1);
        assert!(
            reason.contains("output file already exists; a plain name is that of a database of the cluster"),
            "{reason}"
        );
        assert!(reason.contains("'file:/DIR/FILE?vfs=unix'"), "{reason}");
    }
    assert!(!works(&["db", "list", "--data", &data]).contains("plain"));
    let attached = format!("ATTACH 'file:{file}?vfs=unix' AS p; SELECT x FROM p.t");
    assert_eq!(works(&["sql", "app", &attached, "--data", &data]), "7\n");

    let asked = run(&["sql", "ap", ".tables", "--data", &data]);
    assert!(asked.status.success() && reason(&asked).contains("there is no database ap yet"), "{}", reason(&asked));
    assert_eq!(reason(&run(&["sql", "app", "SELECT x FROM t", "--data", &data])), "");
}

#[test]
fn a_follower_reads_and_says_who_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (members, mut nodes) = three_calm_nodes(dir.path());
    works_in_time(&["transfer", "2", "--endpoints", &members.endpoints()]);
    works_in_time(&[
        "sql",
        "app",
        "CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)",
        "--data",
        &members.data(2),
    ]);
    let read = works(&["sql", "app", "SELECT x FROM t", "--read", "linearizable", "--data", &members.data(1)]);
    assert_eq!(read, "1\n");
    let refused = fails(&["sql", "app", "INSERT INTO t VALUES (2)", "--data", &members.data(1)], 1);
    assert!(refused.contains("node 2 is; nothing was written. Node 2"), "{refused}");
    assert!(refused.contains(&members.address[1]) && refused.contains("shoal sql app --data"), "{refused}");
    assert!(
        refused.ends_with(&format!("make this node the leader: shoal transfer 1 --data {}", members.data(1))),
        "{refused}"
    );
    // By address it is the leader, wherever it stands among them; of a follower alone, the follower.
    let sql = "INSERT INTO t VALUES (2); DELETE FROM t WHERE x = 2";
    works(&["sql", "app", sql, "--endpoints", &members.endpoints()]);
    let refused = fails(&["sql", "app", sql, "--endpoints", &members.address[0]], 1);
    assert!(refused.contains("node 2 is; nothing was written"), "{refused}");
    // Two transactions: at any moment it may have the first one alone.
    let read = ["sql", "app", "SELECT x FROM t", "--read", "linearizable", "--endpoints", &members.address[0]];
    assert_eq!(works(&read), "1\n");
    let closed = Closed::new();
    let nobody = closed.address();
    assert_eq!(works(&["sql", "app", "SELECT 7", "--endpoints", &format!("{nobody},{}", members.address[2])]), "7\n");
    assert!(fails(&["sql", "app", "SELECT 1", "--endpoints", &nobody], 4).contains(&nobody));
    // Without a majority there is no leader, and nothing is written.
    nodes[1].take();
    nodes[2].take();
    let deadline = Instant::now() + LONG;
    while run(&["health", "--data", &members.data(1)]).status.code() != Some(4) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    let reason = fails(&["sql", "app", "INSERT INTO t VALUES (3)", "--data", &members.data(1)], 4);
    assert!(reason.contains("no leader at the moment; nothing was written"), "{reason}");
    let read = ["sql", "app", "SELECT x FROM t", "--read", "linearizable", "--data", &members.data(1)];
    assert!(fails(&read, 4).contains("no majority confirmed"));
    assert_eq!(works(&["sql", "app", "SELECT x FROM t", "--data", &members.data(1)]), "1\n");
}

#[test]
fn a_statement_for_a_node_that_was_killed_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let (node, data) = one_node(dir.path(), &[]);
    works(&["sql", "app", "CREATE TABLE t(x)", "--data", &data]);
    let mut waiting = Waiting::begin(&data, "BEGIN; INSERT INTO t VALUES (1)");
    drop(node);
    writeln!(waiting.stdin, "COMMIT;").unwrap();
    let (code, reason) = waiting.end();
    assert_eq!(code, Some(1), "{reason}");
    assert!(reason.contains("the statement was not done"), "{reason}");
}

/// Exit code 3 ended the session, and with it the receipt that settles what became of the statement.
#[test]
fn a_statement_of_which_nobody_knows_the_outcome_says_how_to_ask_and_any_node_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (members, nodes) = three_nodes(dir.path());
    let deadline = Instant::now() + 2 * LONG;
    let receipt = loop {
        let status = works_in_time(&["status", "--json", "--endpoints", &members.endpoints()]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let Some(leader) = status[0]["status"]["leader"].as_u64() else { continue };
        let data = members.data(leader as usize);
        for name in ["app", "two"] {
            run(&["sql", name, "CREATE TABLE IF NOT EXISTS t(x)", "--data", &data]);
        }
        let others =
            || nodes.iter().zip(1..).filter(|(_, id)| *id != leader).map(|(node, _)| node.as_ref().unwrap().pid());
        others().for_each(|pid| kill_process(pid, Signal::STOP).unwrap());
        let output = run(&["sql", "app", "INSERT INTO t VALUES (1) RETURNING 'row'", "--data", &data]);
        let other = run(&["sql", "app", "ATTACH 'two' AS two; INSERT INTO two.t VALUES (1)", "--data", &data]);
        others().for_each(|pid| kill_process(pid, Signal::CONT).unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A leader that has found out already that it is alone refuses the statement.
        if output.status.code() == Some(3) {
            // The receipt that is kept for `app` would not be this one's.
            let other = String::from_utf8_lossy(&other.stderr).into_owned();
            assert!(!other.contains("shoal outcome"), "{other}");
            // SQLite gives the row before it commits: nobody may take it for an acknowledgement.
            assert_eq!(out(&output), "row\n");
            assert!(said.contains("; the rows that were printed may not be committed; its receipt"), "{said}");
            let words: Vec<&str> = said.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "outcome").unwrap_or_else(|| panic!("{said}"));
            break words[at + 1].to_string();
        }
        assert!(Instant::now() < deadline, "{said}");
    };
    let ask = |place: &str, what: &str| run(&["outcome", &receipt, place, what]);
    for id in 1..=3 {
        let deadline = Instant::now() + LONG;
        let answer = loop {
            let output = ask("--data", &members.data(id));
            match output.status.code() {
                Some(0) => break out(&output),
                code => assert_eq!(code, Some(3), "{}", String::from_utf8_lossy(&output.stderr)),
            }
            assert!(Instant::now() < deadline);
        };
        assert!(answer.starts_with("committed") || answer.starts_with("not committed"), "{answer}");
    }
    // A door behind which nobody is hides none that knows.
    let closed = Closed::new();
    let doors = format!("{},{}", closed.address(), members.endpoints());
    assert_eq!(run(&["outcome", &receipt, "--endpoints", &doors]).status.code(), Some(0));
    assert_eq!(run(&["outcome", "r1-no", "--endpoints", &members.endpoints()]).status.code(), Some(2));
}

#[test]
fn a_directory_without_a_node_is_told() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        fails(&["sql", "app", "SELECT 1", "--data", &text(dir.path())], 4).contains("no node runs in this directory")
    );
    assert!(fails(&["sql", "../app", "SELECT 1", "--data", &text(dir.path())], 4).contains("no node"));
    let (_node, data) = one_node(dir.path(), &[]);
    assert!(fails(&["sql", "../app", "SELECT 1", "--data", &data], 2).contains("../app"));
}
