//! Bytes to tokens. Keeps at most one unfinished token, whose length the framing bounds; never fails for good: after a
//! stray byte it skips to the next place where a message could start again.

/// What the lexer found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// One of `{ } [ ] : ,`.
    Mark(u8),
    /// A string as it was written, quotes and escapes included.
    String(Vec<u8>),
    /// A whole number as it was written.
    Integer(String),
    /// A number with a fraction or an exponent as it was written.
    Float(String),
    /// A bare word.
    Keyword(String),
}

/// What one byte led to, besides being remembered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A token is whole.
    Token(Token),
    /// These bytes start or continue no token.
    Stray(Vec<u8>),
}

/// | state | holds |
/// |---|---|
/// | `Start` | nothing |
/// | `String` | an open string; `escaped` after a backslash |
/// | `Number` | the part of a number named by [`Digits`] |
/// | `Keyword` | a word of `a`–`z` |
/// | `Recovery` | nothing; skips until a mark or a control character other than a tab |
/// | `SkipLine` | nothing; skips until a line feed |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    String { quote: u8, escaped: bool },
    Number(Digits),
    Keyword,
    Recovery,
    SkipLine,
}

/// How far a number has come: `-`, `0`, `12`, `1.`, `1.5`, `1e`, `1e+`, `1e5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digits {
    Sign,
    Zero,
    Whole,
    Point,
    Fraction,
    PowerMark,
    PowerSign,
    Power,
}

impl Digits {
    /// Where the next byte leads; `None`: it is not part of the number.
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Sign, b'0') => Self::Zero,
            (Self::Sign, b'1'..=b'9') | (Self::Whole, b'0'..=b'9') => Self::Whole,
            (Self::Zero | Self::Whole, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Whole | Self::Fraction, b'e' | b'E') => Self::PowerMark,
            (Self::PowerMark, b'+' | b'-') => Self::PowerSign,
            (Self::PowerMark | Self::PowerSign | Self::Power, b'0'..=b'9') => Self::Power,
            _ => return None,
        })
    }

    /// May the number end here, before this byte? (`00` is one stray word, not two numbers.)
    fn may_end(self, byte: u8) -> bool {
        match self {
            Self::Zero => !byte.is_ascii_digit(),
            Self::Whole | Self::Fraction | Self::Power => true,
            Self::Sign | Self::Point | Self::PowerMark | Self::PowerSign => false,
        }
    }
}

/// The incremental lexer of one stream.
#[derive(Debug)]
pub(super) struct Lexer {
    state: State,
    text: Vec<u8>,
}

impl Lexer {
    pub(super) fn new() -> Self {
        Self { state: State::Start, text: Vec::new() }
    }

    /// Bytes held of an unfinished token.
    pub(super) fn held(&self) -> usize {
        self.text.len()
    }

    /// Drops what is held and skips to the next line.
    pub(super) fn skip_line(&mut self) {
        self.text.clear();
        self.state = State::SkipLine;
    }

    /// Takes one byte. A byte that ends a number or a word is a token's start (or mark) of its own: up to two steps.
    pub(super) fn feed(&mut self, byte: u8) -> [Option<Step>; 2] {
        match self.state {
            State::String { quote, escaped } => [self.in_string(byte, quote, escaped), None],
            State::Number(digits) => match digits.next(byte) {
                Some(next) => {
                    self.keep(byte, State::Number(next));
                    [None, None]
                }
                None if digits.may_end(byte) => {
                    let number = String::from_utf8_lossy(&self.take()).into_owned();
                    let whole = matches!(digits, Digits::Zero | Digits::Whole);
                    let token = if whole { Token::Integer(number) } else { Token::Float(number) };
                    [Some(Step::Token(token)), self.start(byte)]
                }
                None => [self.stray(byte), None],
            },
            State::Keyword if byte.is_ascii_lowercase() => {
                self.text.push(byte);
                [None, None]
            }
            State::Keyword => {
                let word = String::from_utf8_lossy(&self.take()).into_owned();
                [Some(Step::Token(Token::Keyword(word))), self.start(byte)]
            }
            State::Recovery if is_mark(byte) || (byte < b' ' && byte != b'\t') || byte >= 0xfe => {
                [self.start(byte), None]
            }
            State::SkipLine if byte == b'\n' => [self.start(byte), None],
            State::Recovery | State::SkipLine => [None, None],
            State::Start => [self.start(byte), None],
        }
    }

    fn start(&mut self, byte: u8) -> Option<Step> {
        self.state = State::Start;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return None,
            mark if is_mark(mark) => return Some(Step::Token(Token::Mark(mark))),
            b'"' | b'\'' => self.keep(byte, State::String { quote: byte, escaped: false }),
            b'-' => self.keep(byte, State::Number(Digits::Sign)),
            b'0' => self.keep(byte, State::Number(Digits::Zero)),
            b'1'..=b'9' => self.keep(byte, State::Number(Digits::Whole)),
            b'a'..=b'z' => self.keep(byte, State::Keyword),
            _ => return self.stray(byte),
        }
        None
    }

    fn in_string(&mut self, byte: u8, quote: u8, escaped: bool) -> Option<Step> {
        if !(b' '..0xfe).contains(&byte) {
            return self.stray(byte);
        }
        if byte == quote && !escaped {
            self.text.push(byte);
            self.state = State::Start;
            return Some(Step::Token(Token::String(self.take())));
        }
        self.keep(byte, State::String { quote, escaped: byte == b'\\' && !escaped });
        None
    }

    fn stray(&mut self, byte: u8) -> Option<Step> {
        self.text.push(byte);
        self.state = State::Recovery;
        Some(Step::Stray(self.take()))
    }

    fn keep(&mut self, byte: u8, state: State) {
        self.text.push(byte);
        self.state = state;
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.text)
    }
}

fn is_mark(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b':' | b',')
}
