//! The tokens of one message to a value. The framing has bounded their number and their nesting.

use serde_json::{Map, Number, Value};

use super::lexer::Token;
use crate::texts;

/// Parses the tokens of one message.
///
/// # Errors
/// QEMU's text, without its `JSON parse error, `.
pub(super) fn parse(tokens: Vec<Token>) -> Result<Value, String> {
    Parser { tokens: tokens.into_iter().peekable() }.value()
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Parser {
    fn value(&mut self) -> Result<Value, String> {
        match self.tokens.next() {
            Some(Token::Mark(b'{')) => self.object(),
            Some(Token::Mark(b'[')) => self.list(),
            Some(Token::String(text)) => string(&text).map(Value::String),
            Some(Token::Integer(text)) => integer(&text),
            Some(Token::Float(text)) => float(&text),
            Some(Token::Keyword(word)) => match word.as_str() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                "null" => Ok(Value::Null),
                _ => Err(texts::invalid_keyword(&word)),
            },
            Some(Token::Mark(_)) | None => Err(texts::EXPECTING_VALUE.into()),
        }
    }

    fn object(&mut self) -> Result<Value, String> {
        let mut members = Map::new();
        if self.mark(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            let Value::String(key) = self.value()? else {
                return Err(texts::KEY_NOT_A_STRING.into());
            };
            if !self.mark(b':') {
                return Err(texts::MISSING_COLON.into());
            }
            let value = self.value()?;
            if members.insert(key, value).is_some() {
                return Err(texts::DUPLICATE_KEY.into());
            }
            if self.mark(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.mark(b',') {
                return Err(texts::SEPARATOR_IN_DICT.into());
            }
        }
    }

    fn list(&mut self) -> Result<Value, String> {
        let mut items = Vec::new();
        if self.mark(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.mark(b']') {
                return Ok(Value::Array(items));
            }
            if !self.mark(b',') {
                return Err(texts::SEPARATOR_IN_LIST.into());
            }
        }
    }

    fn mark(&mut self, mark: u8) -> bool {
        self.tokens.next_if_eq(&Token::Mark(mark)).is_some()
    }
}

/// A number that fits no 64-bit integer is read as a float, as QEMU does.
fn integer(text: &str) -> Result<Value, String> {
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    match text.parse::<u64>() {
        Ok(number) => Ok(number.into()),
        Err(_) => float(text),
    }
}

fn float(text: &str) -> Result<Value, String> {
    let number = text.parse().ok().and_then(Number::from_f64);
    number.map(Value::Number).ok_or_else(|| texts::NUMBER_OUT_OF_RANGE.into())
}

/// The string between its quotes, escapes resolved.
fn string(quoted: &[u8]) -> Result<String, String> {
    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    let Ok(text) = std::str::from_utf8(inner) else {
        return Err(texts::INVALID_UTF8.into());
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.push_str(plain);
        let mut chars = escape.chars();
        out.push(match chars.next() {
            Some(same @ ('"' | '\'' | '\\' | '/')) => same,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let (unicode, after) = unicode(chars.as_str())?;
                rest = after;
                out.push(unicode);
                continue;
            }
            _ => return Err(texts::INVALID_ESCAPE.into()),
        });
        rest = chars.as_str();
    }
    out.push_str(rest);
    Ok(out)
}

/// The character of a `\uXXXX`, or of a pair of them, and what follows it.
fn unicode(after_u: &str) -> Result<(char, &str), String> {
    let invalid = || texts::invalid_unicode(&after_u.chars().take(4).collect::<String>());
    let (first, rest) = hex4(after_u).ok_or_else(invalid)?;
    if let Some(unicode) = char::from_u32(first) {
        return Ok((unicode, rest));
    }
    let (second, rest) = rest.strip_prefix("\\u").and_then(hex4).ok_or_else(invalid)?;
    match (first, second) {
        (0xd800..=0xdbff, 0xdc00..=0xdfff) => {
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            char::from_u32(code).map(|unicode| (unicode, rest)).ok_or_else(invalid)
        }
        _ => Err(invalid()),
    }
}

fn hex4(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((u32::from_str_radix(digits, 16).ok().filter(|_| hexadecimal)?, rest))
}
