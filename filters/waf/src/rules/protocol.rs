//! Protocol abuse and attack tools.

use super::{Rule, rules};
use crate::inputs::{EVERYWHERE, Place, Places, VALUES};

const NAMED_VALUES: Places =
    Places::of(&[Place::Arg, Place::ArgName, Place::Path, Place::Cookie, Place::UrlHeader, Place::FileName]);
const FIELDS: Places = Places::of(&[Place::Arg, Place::ArgName, Place::Path, Place::Cookie, Place::UrlHeader]);
const AGENT: Places = Places::of(&[Place::UserAgent]);

/// Rules 1000 to 1999.
pub const RULES: &[Rule] = rules! {
    1001 Protocol Critical "NUL byte in a value" on NAMED_VALUES, view Plain,
        any ["\0"],
        pattern r"\x00",
        hits ["image.php%00.png", "a\0b", "%2500"], misses ["%20", "100%", "\\0"];

    1002 Protocol Critical "line end followed by a response header" on VALUES, view Plain,
        any ["set-cookie", "location", "content-type", "content-length", "x-xss-protection"],
        pattern r"[\r\n][ \t]*(?:(?:set-cookie|location|x-xss-protection)[ \t]*:|content-type[ \t]*:[ \t]*text/html|content-length[ \t]*:[ \t]*0[ \t]*[\r\n])",
        hits ["x%0d%0aSet-Cookie: a=b", "%250d%250alocation:%20//evil", "a\nContent-Type: text/html"],
        misses ["Set-Cookie: a=b", "date: x\r\ncontent-length: 12\r\ncontent-type: application/json", "first line\r\nsecond: line", "see location: here"];

    1003 Protocol Critical "second request inside a value" on VALUES, view Plain,
        any ["http/1."],
        pattern r"[\r\n][ \t]*(?:get|post|head|put|delete|options|connect|patch|trace)[ \t]+[^\r\n ]+[ \t]+http/1\.[01]",
        hits ["x\r\nGET /admin HTTP/1.1\r\nHost: a", "%0aPOST%20/%20HTTP/1.0"],
        misses ["GET / HTTP/1.1", "we speak HTTP/1.1\nand more"];

    1004 Protocol Critical "mail command after a line end" on FIELDS, view Plain,
        any ["rcpt to", "mail from", "bcc", "quit", "data", "capability", "fetch", "starttls"],
        pattern r"[\r\n][ \t]*(?:rcpt to[ \t]*:|mail from[ \t]*:|bcc[ \t]*:[^\r\n]*@|quit[ \t]*(?:\r|\n)|data[ \t]*\r?\n[^\r\n]*:|starttls|[a-z]\d{1,5} (?:capability|fetch))",
        hits ["bye\r\nQUIT\r\n", "%0aRCPT TO: a@b.example", "x@y.example%0d%0aBcc: z@y.example", "\r\nA1 CAPABILITY\r\nA2 FETCH 7"],
        misses ["to quit smoking\nread on", "mail from: my aunt", "the data\nfollows here"];

    1005 Protocol Critical "charset that hides text from filters" on Places::of(&[Place::Header]), view Base,
        any ["charset"],
        pattern r#"charset ?= ?["']?(?:utf-?7|utf-?16|utf-?32|ibm-?\d|cp-?037|cp-?500|cp-?1140|ebcdic)"#,
        hits ["text/html; charset=utf-7", "application/x-www-form-urlencoded; charset=ibm037"],
        misses ["text/html; charset=utf-8", "application/json; charset=\"ISO-8859-1\""];

    1101 Scanner Critical "user agent of an attack tool" on AGENT, view Base,
        any ["sqlmap", "nikto", "nessus", "acunetix", "masscan", "zgrab", "w3af", "havij", "dirbuster", "gobuster", "fuzz faster", "ffuf",
             "wfuzz", "feroxbuster", "dirsearch", "wpscan", "joomscan", "nuclei", "arachni", "openvas", "netsparker", "invicti", "appscan",
             "paros/", "owasp", "skipfish", "whatweb", "jaeles", "xsser", "commix", "sqlninja", "hydra", "metasploit", "zmeu", "jorgee",
             "morfeus", "bsqlbf", "pangolin", "webinspect", "grendel", "vega/", "nmap", "qualys", "burp", "w3c_css_injector", "webshag",
             "brutus", "sqlbrute", "absinthe", "whitehat", "gotestwaf", "fimap", "uniscan", "sysscan", "httpx", "projectdiscovery"],
        pattern r"sqlmap|nikto|nessus|acunetix|masscan|zgrab|w3af|havij|dirbuster|gobuster|fuzz faster|\bffuf|wfuzz|feroxbuster|dirsearch|wpscan|joomscan|nuclei|arachni|openvas|netsparker|invicti|appscan|paros/|owasp[ _-]?zap|skipfish|whatweb|jaeles|xsser|commix|sqlninja|thc-hydra|\(hydra\)|metasploit|zmeu|jorgee|morfeus|bsqlbf|pangolin|webinspect|grendel-scan|vega/|nmap scripting|nmap nse|qualys|burp ?(?:suite|collaborator)|w3c_css_injector|webshag|brutus/|sqlbrute|absinthe|whitehat security|gotestwaf|fimap|uniscan|sysscan|projectdiscovery|httpx - ",
        hits ["sqlmap/1.7#stable (https://sqlmap.org)", "Mozilla/5.0 (compatible; Nmap Scripting Engine)", "Fuzz Faster U Fool v9"],
        misses ["Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "curl/8.5.0", "python-httpx/0.27"];

    1102 Scanner Critical "address of an out-of-band test service" on EVERYWHERE, view Base,
        any ["burpcollaborator", "oastify.", "oast.", "interact.sh", "interactsh", "dnslog.", "ceye.io", "bxss.me", "xss.ht", "canarytokens.", "requestbin.net", "pingb.in"],
        pattern r"[a-z0-9][./](?:burpcollaborator\.net|oastify\.com|oast\.(?:pro|live|site|online|fun|me)|interact\.sh|interactsh\.com|dnslog\.(?:cn|link|io)|ceye\.io|bxss\.me|xss\.ht|requestbin\.net|pingb\.in)\b|//canarytokens\.",
        hits ["http://abc123.burpcollaborator.net/x", "root@x1y2.oastify.com"],
        misses ["boast.me not", "https://example.com/interact.shtml"];
};
