//! Tokens to messages: a message is whole as soon as its braces and brackets are closed (or over-closed).
//!
//! What one message may cost is bounded by [`Bounds`]. Beyond a bound the rest of the line is skipped, so that one bad message
//! gets one error.

use std::collections::VecDeque;

use serde_json::Value;

use super::lexer::{Lexer, Step, Token};
use super::parser::parse;
use crate::texts;

/// What one message may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of its tokens.
    bytes: usize,
    /// Tokens.
    tokens: usize,
    /// Open braces and brackets.
    nesting: u32,
}

impl Bounds {
    /// For a command.
    pub(crate) const SERVER: Self = Self { bytes: 1 << 20, tokens: 1 << 16, nesting: 64 };
    /// For an answer: a machine's schema is large.
    pub(crate) const CLIENT: Self = Self { bytes: 16 << 20, tokens: 1 << 22, nesting: 64 };
}

/// Which limit a message broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Size,
    Tokens,
    Nesting,
}

impl Limit {
    fn text(self) -> &'static str {
        match self {
            Self::Size => texts::SIZE_LIMIT,
            Self::Tokens => texts::TOKEN_LIMIT,
            Self::Nesting => texts::NESTING_LIMIT,
        }
    }
}

/// Cuts a byte stream into JSON values.
#[derive(Debug)]
pub(crate) struct Framer {
    bounds: Bounds,
    lexer: Lexer,
    tokens: Vec<Token>,
    bytes: usize,
    braces: i32,
    brackets: i32,
    messages: VecDeque<Result<Value, String>>,
}

impl Framer {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lexer: Lexer::new(),
            tokens: Vec::new(),
            bytes: 0,
            braces: 0,
            brackets: 0,
            messages: VecDeque::new(),
        }
    }

    /// Takes what was read. At most one message a byte comes of it.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            for step in self.lexer.feed(byte).into_iter().flatten() {
                match step {
                    Step::Token(token) => self.token(token),
                    Step::Stray(text) => self.fail(texts::stray(&String::from_utf8_lossy(&text))),
                }
            }
            if self.bytes + self.lexer.held() > self.bounds.bytes {
                self.over(Limit::Size);
            }
        }
    }

    /// The next whole message, or QEMU's text for what was none.
    pub(crate) fn next_message(&mut self) -> Option<Result<Value, String>> {
        self.messages.pop_front()
    }

    /// Whole messages wait.
    pub(crate) fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// A part of a message was read.
    pub(crate) fn is_inside_message(&self) -> bool {
        !self.tokens.is_empty() || self.lexer.held() > 0
    }

    fn token(&mut self, token: Token) {
        match &token {
            Token::Mark(b'{') => self.braces += 1,
            Token::Mark(b'}') => self.braces -= 1,
            Token::Mark(b'[') => self.brackets += 1,
            Token::Mark(b']') => self.brackets -= 1,
            _ => {}
        }
        self.bytes += match &token {
            Token::Mark(_) => 1,
            Token::String(text) => text.len(),
            Token::Integer(text) | Token::Float(text) | Token::Keyword(text) => text.len(),
        };
        self.tokens.push(token);
        if self.braces < 0 || self.brackets < 0 || (self.braces == 0 && self.brackets == 0) {
            let tokens = self.reset();
            self.messages.push_back(parse(tokens).map_err(|text| texts::json_parse_error(&text)));
        } else if self.braces.unsigned_abs() + self.brackets.unsigned_abs() > self.bounds.nesting {
            self.over(Limit::Nesting);
        } else if self.tokens.len() > self.bounds.tokens {
            self.over(Limit::Tokens);
        }
    }

    fn over(&mut self, limit: Limit) {
        self.lexer.skip_line();
        self.reset();
        self.messages.push_back(Err(limit.text().into()));
    }

    fn fail(&mut self, text: String) {
        self.reset();
        self.messages.push_back(Err(texts::json_parse_error(&text)));
    }

    fn reset(&mut self) -> Vec<Token> {
        self.bytes = 0;
        self.braces = 0;
        self.brackets = 0;
        std::mem::take(&mut self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frame(bytes: &[u8]) -> Vec<Result<Value, String>> {
        let mut framer = Framer::new(Bounds::SERVER);
        framer.feed(bytes);
        std::iter::from_fn(|| framer.next_message()).collect()
    }

    fn error(bytes: &[u8]) -> String {
        let mut messages = frame(&[bytes, b"\n"].concat());
        messages.remove(0).unwrap_err()
    }

    #[test]
    fn objects_are_cut_wherever_the_bytes_are() {
        let stream = br#" {"a":[1,{"b":"}"}]}
{'single': 'a"b'}{"c":-0,"d":1.5,"e":18446744073709551615,"f":null}"#;
        let whole = frame(stream);
        assert_eq!(
            whole,
            [
                Ok(json!({"a": [1, {"b": "}"}]})),
                Ok(json!({"single": "a\"b"})),
                Ok(json!({"c": 0, "d": 1.5, "e": u64::MAX, "f": null})),
            ]
        );
        for cut in 0..stream.len() {
            let mut framer = Framer::new(Bounds::SERVER);
            framer.feed(&stream[..cut]);
            framer.feed(&stream[cut..]);
            let messages: Vec<_> = std::iter::from_fn(|| framer.next_message()).collect();
            assert_eq!(messages, whole, "cut at {cut}");
        }
    }

    #[test]
    fn strings_are_read_with_every_escape() {
        let text = r#"["a\/b\b\f\n\r\t\u007f\u0001\u0000\u00e9\ud83d\ude00 é", 'it\'s']"#;
        assert_eq!(frame(text.as_bytes()), [Ok(json!(["a/b\u{8}\u{c}\n\r\t\u{7f}\u{1}\0é😀 é", "it's"]))]);
    }

    /// Every row was seen in QEMU 7.2.22 and 10.0.2.
    #[test]
    fn what_is_no_json_gets_qemus_text() {
        for (input, text) in [
            (&b"garbage"[..], "invalid keyword 'garbage'"),
            (b"}", "expecting value"),
            (b"]", "expecting value"),
            (b":", "expecting value"),
            (b"{,}", "expecting value"),
            (b"{\"a\"}", "missing : in object pair"),
            (b"{\"a\":}", "expecting value"),
            (b"{\"a\":1,}", "expecting value"),
            (b"{\"a\":1,,}", "expecting value"),
            (b"{\"a\" 1}", "missing : in object pair"),
            (b"{\"a\":1 \"b\":2}", "expected separator in dict"),
            (b"{\"a\":1]", "expected separator in dict"),
            (b"{\"a\":1,\"a\":2}", "duplicate key"),
            (b"{1:2}", "key is not a string in object"),
            (b"{x}", "invalid keyword 'x'"),
            (b"[}", "expecting value"),
            (b"[1 2]", "expected separator in list"),
            (b"[1,]", "expecting value"),
            (b"[00]", "stray '00'"),
            (b"[1e]", "stray '1e]'"),
            (b"[1.]", "stray '1.]'"),
            (b"[-]", "stray '-]'"),
            (b"[.5]", "stray '.'"),
            (b"[+1]", "stray '+'"),
            (b"[True]", "stray 'T'"),
            (b"[12abc]", "expected separator in list"),
            (b"# foo", "stray '#'"),
            (b"\"\t\"", "stray '\"\t'"),
            (b"\"abc", "stray '\"abc\n'"),
            (b"\x01", "stray '\u{1}'"),
            (b"\xff", "stray '\u{fffd}'"),
            (b"\"\xff\"", "stray '\"\u{fffd}'"),
            (b"\"\xc3(\"", "invalid UTF-8 sequence in string"),
            (b"\"\\q\"", "invalid escape sequence in string"),
            (b"\"\\ud83d\"", "\\ud83d is not a valid Unicode character"),
            (b"\"\\u12\"", "\\u12 is not a valid Unicode character"),
        ] {
            assert_eq!(
                error(input),
                format!("JSON parse error, {text}"),
                "{}",
                String::from_utf8_lossy(input)
            );
        }
    }

    #[test]
    fn after_an_error_the_next_message_is_read() {
        for (input, errors) in [
            (&b"# foo 5\n"[..], 1),
            (b"\xff", 1),
            (b"{\"id\":00}", 2),
            (b"{\"id\":\"a\nb\"}", 2),
            (b"foo bar ", 2),
        ] {
            let messages = frame(&[input, b"{\"execute\":\"x\"}"].concat());
            assert_eq!(messages.len(), errors + 1, "{}", String::from_utf8_lossy(input));
            assert!(messages[..errors].iter().all(Result::is_err));
            assert_eq!(messages[errors], Ok(json!({"execute": "x"})));
        }
    }

    #[test]
    fn a_message_beyond_a_limit_gets_one_error_and_its_line_is_skipped() {
        let long = [b"{\"a\":\"".as_slice(), &vec![b'x'; 3 << 20], b"\"}\n{}"].concat();
        let many = [b"[".as_slice(), &b"1,".repeat(1 << 18), b"1]\n{}"].concat();
        let deep = [b"[".repeat(1 << 18), b"]".repeat(1 << 18), b"\n{}".to_vec()].concat();
        for (input, text) in [
            (long, "JSON token size limit exceeded"),
            (many, "JSON token count limit exceeded"),
            (deep, "JSON nesting depth limit exceeded"),
        ] {
            assert_eq!(frame(&input), [Err(text.into()), Ok(json!({}))]);
        }
    }

    #[test]
    fn messages_just_within_the_limits_are_read() {
        let nested = ["[".repeat(64), "]".repeat(64)].concat();
        assert!(frame(nested.as_bytes())[0].is_ok());
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(Bounds::SERVER.bytes - 8));
        assert!(frame(long.as_bytes())[0].is_ok());
    }

    /// Random bytes, most of them JSON's own, so that deep and odd nestings come up.
    #[test]
    fn no_bytes_upset_the_framer() {
        let alphabet = b"{}[]:,\"'\\ \n0123456789.-+eEtruefalsn\x00\xff\xc3\xa9u";
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut framer = Framer::new(Bounds::SERVER);
        let mut good = 0;
        for _ in 0..500_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            framer.feed(&[alphabet[state as usize % alphabet.len()]]);
            while let Some(message) = framer.next_message() {
                good += u32::from(message.is_ok());
            }
            assert!(framer.tokens.len() <= framer.bounds.tokens && framer.bytes <= framer.bounds.bytes);
        }
        assert!(good > 1000, "some of it is JSON: {good}");
    }
}
