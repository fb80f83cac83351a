//! Where a statement ends, in text that comes line by line.
//!
//! A semicolon ends one, unless it stands in a string, a quoted name or a comment, or inside of the body of a trigger, which
//! begins with `CREATE [TEMP] TRIGGER` (behind `EXPLAIN`, too) and ends with `; END ;`. SQLite's own shell goes by the same
//! rules (`sqlite3_complete`); they look at a few words only and know no grammar.
//!
//! Deliberately absent: whether it is a good statement. The node says that.

/// Where in the text the end stands, byte by byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Lexer {
    #[default]
    Code,
    /// In a word that begins here.
    Word(usize),
    /// Ends with this byte.
    Quoted(u8),
    /// One dash, which may begin a comment.
    Dash,
    LineComment,
    /// One slash, which may begin a comment.
    Slash,
    BlockComment,
    /// In such a comment, behind a star.
    Star,
}

/// Which words came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Words {
    /// None.
    #[default]
    Blank,
    Explain,
    Create,
    /// A statement that the next semicolon ends.
    Simple,
    /// The body of a trigger.
    Body,
    /// In the body, behind a semicolon.
    BodySemicolon,
    /// In the body, behind a semicolon and END.
    BodyEnd,
}

/// Text that came.
#[derive(Default)]
pub(crate) struct Splitter {
    text: String,
    /// Where the statement begins that comes next. What is before it goes when there is no whole one any more: a line may have very many.
    begin: usize,
    /// What of it was looked at.
    seen: usize,
    lexer: Lexer,
    words: Words,
}

impl Splitter {
    /// Takes text in; whole lines, with their ends.
    pub(crate) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Whether nothing waits but blanks and comments: then a line may be a command of the shell.
    pub(crate) fn is_blank(&self) -> bool {
        self.words == Words::Blank && matches!(self.lexer, Lexer::Code)
    }

    /// The next whole statement, with its semicolon.
    pub(crate) fn next(&mut self) -> Option<String> {
        while let Some(byte) = self.text.as_bytes().get(self.seen).copied() {
            let ends = self.step(byte);
            self.seen += 1;
            if ends {
                let statement = self.text[self.begin..self.seen].to_string();
                (self.begin, self.words) = (self.seen, Words::Blank);
                return Some(statement);
            }
        }
        let done = if self.is_blank() { self.seen } else { self.begin };
        self.text.drain(..done);
        self.seen -= done;
        self.begin = 0;
        if let Lexer::Word(from) = &mut self.lexer {
            *from -= done;
        }
        None
    }

    /// What is left at the end of the input, if it is more than blanks and comments: a last statement may do without its
    /// semicolon.
    pub(crate) fn rest(&mut self) -> Option<String> {
        self.push("\n");
        let next = self.next();
        let rest = std::mem::take(self);
        next.or_else(|| (rest.words != Words::Blank || matches!(rest.lexer, Lexer::Quoted(_))).then_some(rest.text))
    }

    /// Whether this byte ends a statement.
    fn step(&mut self, byte: u8) -> bool {
        let wordy = byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || !byte.is_ascii();
        self.lexer = match (self.lexer, byte) {
            (Lexer::Word(_), _) if wordy => return false,
            (Lexer::Word(from), _) => {
                self.word(from);
                self.lexer = Lexer::Code;
                return self.step(byte);
            }
            (Lexer::Quoted(end), _) if byte == end => Lexer::Code,
            (Lexer::LineComment, b'\n') => Lexer::Code,
            (Lexer::Dash, b'-') => Lexer::LineComment,
            (Lexer::Slash, b'*') => Lexer::BlockComment,
            (Lexer::Dash | Lexer::Slash, _) => {
                self.other();
                self.lexer = Lexer::Code;
                return self.step(byte);
            }
            (Lexer::BlockComment | Lexer::Star, b'*') => Lexer::Star,
            (Lexer::Star, b'/') => Lexer::Code,
            (Lexer::Star, _) => Lexer::BlockComment,
            (Lexer::Quoted(_) | Lexer::LineComment | Lexer::BlockComment, _) => return false,
            (Lexer::Code, b';') => {
                self.words = match self.words {
                    Words::Body | Words::BodySemicolon => Words::BodySemicolon,
                    _ => return true,
                };
                Lexer::Code
            }
            (Lexer::Code, b'-') => Lexer::Dash,
            (Lexer::Code, b'/') => Lexer::Slash,
            (Lexer::Code, b'\'' | b'"' | b'`' | b'[') => {
                self.other();
                Lexer::Quoted(if byte == b'[' { b']' } else { byte })
            }
            (Lexer::Code, _) if wordy => Lexer::Word(self.seen),
            (Lexer::Code, _) if byte.is_ascii_whitespace() => Lexer::Code,
            (Lexer::Code, _) => {
                self.other();
                Lexer::Code
            }
        };
        false
    }

    fn word(&mut self, from: usize) {
        let word = &self.text[from..self.seen];
        let is = |known: &str| word.eq_ignore_ascii_case(known);
        self.words = match self.words {
            Words::Blank if is("explain") => Words::Explain,
            Words::Blank | Words::Explain if is("create") => Words::Create,
            Words::Explain if is("query") || is("plan") => Words::Explain,
            Words::Create if is("temp") || is("temporary") => Words::Create,
            Words::Create if is("trigger") => Words::Body,
            Words::BodySemicolon if is("end") => Words::BodyEnd,
            _ => return self.other(),
        };
    }

    /// Anything that is none of the words that matter there.
    fn other(&mut self) {
        self.words = match self.words {
            Words::Body | Words::BodySemicolon | Words::BodyEnd => Words::Body,
            _ => Words::Simple,
        };
    }
}

/// Whether a statement does nothing but read, as its words tell: `SELECT`, `VALUES` and `EXPLAIN`, and the first two behind `WITH`. So
/// does one that is none. Where they do not tell, it may do more.
pub(crate) fn only_reads(statement: &str) -> bool {
    let mut words = top_words(statement);
    let is = |word: &str, known: &[&str]| known.iter().any(|known| word.eq_ignore_ascii_case(known));
    match words.next() {
        None => true,
        Some(word) if is(word, &["WITH"]) => {
            let verb = words.find(|word| is(word, &["SELECT", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE"]));
            verb.is_some_and(|verb| is(verb, &["SELECT", "VALUES"]))
        }
        Some(word) => is(word, &["SELECT", "VALUES", "EXPLAIN"]),
    }
}

/// Words of a statement outside of parentheses, quotes and comments; and any other character, but for blanks and semicolons.
fn top_words(mut text: &str) -> impl Iterator<Item = &str> {
    let wordy = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    // Behind the first of these, or at the end.
    let behind = |text: &'_ str, end: &str| text.find(end).map_or(text.len(), |at| at + end.len());
    let mut depth = 0_usize;
    std::iter::from_fn(move || {
        loop {
            let first = text.chars().next()?;
            let length = match first {
                '-' if text.starts_with("--") => behind(text, "\n"),
                '/' if text.starts_with("/*") => 2 + behind(&text[2..], "*/"),
                '\'' | '"' | '`' => 1 + behind(&text[1..], &first.to_string()),
                '[' => behind(text, "]"),
                _ if wordy(first) => text.find(|c| !wordy(c)).unwrap_or(text.len()),
                _ => first.len_utf8(),
            };
            let (word, rest) = text.split_at(length);
            text = rest;
            match first {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ';' => {}
                _ if first.is_whitespace() || word.starts_with("--") || word.starts_with("/*") => {}
                _ if depth == 0 => return Some(word),
                _ => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_reads_is_told_from_what_may_do_more() {
        for reads in [
            "SELECT 1;",
            " -- INSERT\n/* DELETE */ select replace('a', 'b', 'c')",
            "VALUES (1)",
            "EXPLAIN QUERY PLAN DELETE FROM t",
            "WITH c(x) AS (SELECT 1 UNION ALL VALUES (2)), \"insert\" AS (SELECT 'x)') SELECT replace(x, 1, 2) FROM c",
            "with recursive [a)] as materialized (select 1) values (1)",
            ";",
            " -- nothing",
            "",
            "SELECT 'open",
        ] {
            assert!(only_reads(reads), "{reads}");
        }
        for more in [
            "INSERT INTO t SELECT 1",
            "WITH c AS (SELECT 1) INSERT INTO t SELECT * FROM c RETURNING x",
            "WITH c AS (SELECT ')' FROM [)]) /* SELECT */ DELETE FROM t WHERE x IN (SELECT * FROM c)",
            "WITH",
            "WITH c AS (SELECT 1",
            "'SELECT' 1",
            "BEGIN",
            "COMMIT;",
            "PRAGMA user_version = 3",
            "ü",
        ] {
            assert!(!only_reads(more), "{more}");
        }
    }

    fn split(text: &str) -> Vec<String> {
        // Byte by byte, in pieces, and at once: the same.
        let mut all = Splitter::default();
        all.push(text);
        let mut found: Vec<String> = std::iter::from_fn(|| all.next()).collect();
        let mut slow = Splitter::default();
        let mut again = Vec::new();
        for c in text.chars() {
            slow.push(&c.to_string());
            again.extend(std::iter::from_fn(|| slow.next()));
        }
        found.extend(all.rest());
        again.extend(slow.rest());
        let trimmed = |list: Vec<String>| -> Vec<String> { list.iter().map(|text| text.trim().to_string()).collect() };
        let (found, again) = (trimmed(found), trimmed(again));
        assert_eq!(found, again, "{text:?}");
        found
    }

    #[test]
    fn a_semicolon_ends_a_statement_but_not_everywhere() {
        assert_eq!(split("SELECT 1; SELECT 2;\n"), ["SELECT 1;", "SELECT 2;"]);
        assert_eq!(split("SELECT 1"), ["SELECT 1"]);
        assert_eq!(split(" \n-- nothing; here\n/* nor; here */ "), Vec::<String>::new());
        assert_eq!(
            split("SELECT ';', \"a;b\", [c;d], `e;f`, 'it''s; x';"),
            ["SELECT ';', \"a;b\", [c;d], `e;f`, 'it''s; x';"]
        );
        assert_eq!(split("SELECT 1 -- a; b\n, 2;"), ["SELECT 1 -- a; b\n, 2;"]);
        assert_eq!(split("SELECT 4 / 2 - 1 /* ; **/ ;"), ["SELECT 4 / 2 - 1 /* ; **/ ;"]);
        assert_eq!(split("SELECT 'open; "), ["SELECT 'open;"]);
        assert_eq!(split(";;"), [";", ";"]);
        let trigger =
            "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; SELECT CASE 1 WHEN 1 THEN 2 END; END;";
        assert_eq!(split(&format!("{trigger} SELECT 1;")), [trigger, "SELECT 1;"]);
        assert_eq!(
            split("EXPLAIN CREATE TRIGGER t BEGIN SELECT 1; END ;"),
            ["EXPLAIN CREATE TRIGGER t BEGIN SELECT 1; END ;"]
        );
        assert_eq!(split("CREATE TABLE trigger_log(x); SELECT 1;"), ["CREATE TABLE trigger_log(x);", "SELECT 1;"]);
        assert_eq!(split("SELECT 'ü;é'; SELECT 2;"), ["SELECT 'ü;é';", "SELECT 2;"]);
    }

    #[test]
    fn blank_is_what_a_command_of_the_shell_may_stand_behind() {
        let mut splitter = Splitter::default();
        for (text, blank) in
            [(" \n", true), ("-- x\n", true), ("/* x\n", false), ("*/\n", true), ("SELECT\n", false), ("1;\n", true)]
        {
            splitter.push(text);
            while splitter.next().is_some() {}
            assert_eq!(splitter.is_blank(), blank, "{text:?}");
        }
    }

    /// Each one cost a copy of all that stood behind it on the line: a dump without ends of lines took minutes and more.
    #[test]
    fn a_line_of_many_statements_is_not_copied_for_each() {
        const MANY: usize = 50_000;
        let mut splitter = Splitter::default();
        splitter.push(&format!("{} SELECT 'the last", "SELECT 1;".repeat(MANY)));
        let (place, length) = (splitter.text.as_ptr(), splitter.text.len());
        for _ in 0..MANY {
            assert_eq!(splitter.next().as_deref(), Some("SELECT 1;"));
            assert_eq!((splitter.text.as_ptr(), splitter.text.len()), (place, length));
        }
        assert_eq!(splitter.next(), None);
        // And what is done with is not kept.
        assert_eq!(splitter.text, " SELECT 'the last");
        splitter.push(" one';\nSELECT");
        assert_eq!(splitter.next().as_deref(), Some(" SELECT 'the last one';"));
        assert_eq!(splitter.next(), None);
        splitter.push("ED; EXPLAIN CREATE TRIG");
        assert_eq!(splitter.next().as_deref(), Some("\nSELECTED;"));
        assert_eq!(splitter.next(), None);
        splitter.push("GER t BEGIN SELECT 1; END; SELECT 2;");
        assert_eq!(splitter.next().as_deref(), Some(" EXPLAIN CREATE TRIGGER t BEGIN SELECT 1; END;"));
        assert_eq!(splitter.rest().as_deref(), Some(" SELECT 2;"));
    }
}
