//! Cross-site scripting.

use super::{Rule, rules};
use crate::inputs::{EVERYWHERE, Place, Places, VALUES};

const AND_AGENT: Places = VALUES.and(Places::of(&[Place::UserAgent]));
const FIELDS: Places =
    Places::of(&[Place::Arg, Place::ArgName, Place::Path, Place::Cookie, Place::UrlHeader, Place::FileName]);

/// Rules 5000 to 5999.
pub const RULES: &[Rule] = rules! {
    5001 Xss Critical "script element" on EVERYWHERE, view Base,
        any ["script"],
        pattern r"<[/!<\x80-\xff]*script[ />:=;(\x80-\xff]|<[a-z]+:script[ />]",
        hits ["<script>alert(1)</script>", "<SCRIPT SRC=//x>", "</script >", "<<script/src=x>"],
        misses ["<scripture>", "script kiddie", "a < script", "manuscript>"];

    5002 Xss Critical "event handler attribute" on AND_AGENT, view Base,
        any ["on"],
        pattern r#"(?:^|[ "'/;`,>)\x80-\xff(=])on(?:abort|activate|after(?:print|scriptexecute|update)|animation(?:start|end|iteration|cancel)|auxclick|before(?:copy|cut|paste|input|print|unload|scriptexecute|toggle|activate|deactivate|editfocus|update|match|xrselect)|begin|blur|bounce|cancel|canplay(?:through)?|cellchange|change|click|close|command|contextmenu|context(?:lost|restored)|controlselect|copy|cuechange|cut|dataavailable|dataset(?:changed|complete)|dblclick|deactivate|device(?:motion|orientation|light|proximity)|drag(?:end|enter|exit|leave|over|start|drop)?|drop|durationchange|emptied|end(?:ed)?|error(?:update)?|filterchange|finish|focus(?:in|out)?|formdata|form(?:change|input)|fullscreen(?:change|error)|gotpointercapture|hashchange|help|input|invalid|key(?:down|press|up)|languagechange|layoutcomplete|load(?:eddata|edmetadata|end|start)?|losecapture|lostpointercapture|message(?:error)?|mouse(?:down|enter|leave|move|out|over|up|wheel)|move(?:end|start)?|mozfullscreenchange|offline|online|open|page(?:hide|show|reveal|swap)|paste|pause|play(?:ing)?|pointer(?:cancel|down|enter|leave|move|out|over|rawupdate|up)|popstate|progress|propertychange|ratechange|readystatechange|repeat|reset|resize(?:end|start)?|resume|reverse|row(?:s(?:enter|delete|inserted)|exit|enter|delete|inserted)|scroll(?:end|snapchange|snapchanging)?|search|securitypolicyviolation|seek(?:ed|ing)?|select(?:ionchange|start)?|show|slotchange|stalled|start|stop|storage|submit|suspend|syncrestored|timeerror|timeupdate|toggle|touch(?:cancel|end|move|start)|trackchange|transition(?:cancel|end|run|start)|unhandledrejection|unload|urlflip|volumechange|waiting|webkit\w{5,40}|wheel|zoom|x|outofsync|mediacomplete|mediaerror|cachedelete|vibrate|rejectionhandled|beforeinstallprompt|cuechange|beforexrselect|encrypted|autocomplete(?:error)?) ?=(?:[^=]|$)"#,
        hits ["<img src=x onerror=alert(1)>", "\" onmouseover=\"x", "\"onwheel=run(7)", "<svg/onload=run()", "onpointerrawupdate=x", "onanimationstart=\"run()\""],
        misses ["condition = 5", "once = more", "onboarding=1", "options=on", "son=x", "on = off"];

    5003 Xss Critical "script URL" on AND_AGENT, view Script,
        any ["script:", "data:text/html", "data:text/xml", "data:image/svg", "data:application/x", "feed:java"],
        pattern r#"(?:java|vb|live)script:(?:[^v;"' ]|v[^o])[^ ]{0,60}(?:\(|`|=|//|\\|%|&)|(?:href|src|action|data|formaction|background|url|lowsrc|dynsrc|to|from|values|content|code)(?:=|\()["'`]?[^a-z"']{0,6}(?:java|vb|live)script:(?:[^v;"' ]|v[^o])|data:(?:text/html|text/xml|image/svg\+xml|application/x(?:html\+xml|ml))[,;]"#,
        hits ["javascript:run(7)", "<a href=\"java\tscript:x\">", "data:text/html,<b>", "vbscript:msgbox(1)"],
        misses ["javascript:void(0);", "<a href=\"javascript:;\">x</a>", "JavaScript: a first course", "typescript: the manual", "data:image/png;base64,AA="];

    5004 Xss Critical "element that runs or embeds things" on AND_AGENT, view Base,
        any ["<"],
        pattern r"<[/\x80-\xff]*(?:iframe|frame|frameset|object|embed|applet|base|bgsound|isindex|layer|ilayer|xss|x|foreignobject|animate(?:transform|motion|color)|portal|plaintext|import|vmlframe|handler)(?:$|[ />\x80-\xff])[^<]{0,60}",
        hits ["<iframe src=x>", "<object data=x>", "<base href=//x>"],
        misses ["a <b> c", "<basement>", "x < set y", "<p>metadata</p>", "3<b4"];

    5005 Xss Critical "element with a dangerous attribute" on VALUES, view Base,
        any ["srcdoc", "formaction", "expression", "-moz-binding", "behavior", "@import", "xlink:href", "http-equiv", "contenteditable", "autofocus", "v-on", "v-html", "ng-", "x-on", "x-html", "x-init", "v-if", "attributename", "style", "<link"],
        pattern r#"\bsrcdoc ?=|\bformaction ?= ?["']?(?:java|data|//|http)|[:=]["' ]?expression ?\(|-moz-binding ?:|\bbehavior ?: ?url|@import ?(?:['"]|url)|xlink:href ?= ?["']?(?:data|java|#|//|http)|\bhttp-equiv ?= ?["']?(?:refresh|set-cookie|link)|<\w+[^>]*[ "'/](?:contenteditable|autofocus)\b[^>]*|\b(?:v-on:|v-html|v-if|ng-init|ng-click|ng-app|ng-csp|x-on:|x-html|x-init)\]?[\w.-]* ?=|attributename ?= ?["']?(?:on|href|xlink)|<style[ >/]|<link[ /][^>]*(?:href|rel) ?="#,
        hits ["<iframe srcdoc='x'>", "<div style=\"width: expression(alert(1))\">", "<b ng-init='x'>", "<style>@import'//x';</style>", "<button formaction=javascript:x>"],
        misses ["<p style=\"color:red\">text</p>", "facial expression (sad)", "good behavior", "autofocus the camera"];

    5006 Xss Critical "call of a dialog or of code" on AND_AGENT, view Script,
        any ["alert", "confirm", "prompt", "eval", "settimeout", "setinterval", "function(", "fromcharcode", "atob", "setimmediate", "msgbox", "importscripts", "execscript", "].", "reflect.", "print`", "print()"],
        pattern r#"(?:^|[^a-z0-9_])(?:alert|confirm|prompt)\)?(?:\.(?:call|apply|bind))?(?:\(|`|\?\.\(|&lpar)(?:$|[^)`]*[)`;]|[\w'"/\[]|<)|\[[^\]]*(?:alert|confirm|prompt)[^\]]*\]\(|(?:^|[^a-z0-9_.-])(?:eval|setimmediate|execscript|importscripts)(?:\)?\(|`)['"`(\w\[/]|(?:settimeout|setinterval)[(`](?:['"`/]|alert|eval|\w+\()|(?:^|[^\w.])(?:new)?function\(["'`][^)]*\)(?:\(\)|`)|string\.fromcharcode|(?:^|[^\w])atob[(`]['"`\w]|msgbox\(|(?:alert|confirm|prompt)\.constructor|=(?:alert|confirm|prompt)[;)}`]|(?:\.|\?\.|\[['"])(?:map|foreach|find|filter|some|every|replace|then|sort|reduce)(?:['"]\])?\((?:alert|confirm|prompt|eval)\)|print`|\]\.(?:map|sort|filter|find|some|every|reduce|foreach|flatmap|concat)\.(?:call|apply)(?:`|\()|\breflect\.\w+(?:\.(?:call|apply))?`"#,
        hits ["'-alert(7)-'", "(alert)(7)", "confirm.call(a,7)", "eval(atob('x'))", "alert`1`", "setInterval('al'+'ert(7)')", "top['al'+'ert'](1)"],
        misses ["a prompt answer helps", "?login_hint=&prompt=select_account", "/x?type=alert&y=1", "alert me please", "medieval (age)", "please confirm", "the alerts (3)"];

    5007 Xss Critical "access to the document or its cookies" on VALUES, view Script,
        any ["document", "window", "localstorage", "sessionstorage", ".innerhtml", "self[", "top[", "frames[", "parent[", "this[", "content[", "globalthis", "constructor", "__proto__", "location", ".outerhtml", "xmlhttprequest", "sendbeacon", "insertadjacenthtml"],
        pattern r#"(?:^|[^a-z])document\)?(?:\.|\[['"`/])(?:cookie|domain|write|location|body|createelement|getelement|queryselector|forms|documentelement|title|head|url|referrer|implementation|execcommand|all|scripts)|window(?:\.|\[['"`/])(?:location|open|name|onerror|eval|alert|document|top|atob|onload|cookie)\b|(?:local|session)storage\.(?:getitem|setitem|\w+=)|\.(?:inner|outer)html(?:=|\+=)|(?:^|[^a-z])(?:window|self|top|frames|parent|globalthis|this|content)\[[^\]]{1,60}\](?:\(|\[|`|=)|(?:^|[^\w])(?:constructor\.(?:constructor|prototype|fromcharcode)|__proto__[.\[]|constructor\[)|\['?(?:constructor|__proto__)'?\]|constructor\(['"`]|(?:^|[^a-z.])location(?:\.(?:href|hash|search|replace|assign)(?:=|\()|=["'`/a-z])|newxmlhttprequest|navigator\.sendbeacon|insertadjacenthtml\("#,
        hits ["document.cookie", "document[\"domain\"]", "window[/*a*/'alert'/*b*/](1)", "self['ale'+'rt'](1)", "x.innerHTML=y", "constructor.constructor('a')()", "toString().constructor.prototype.charAt=[].join"],
        misses ["a document about cookies", "the window location", "my location: here", "top[3] songs", "this[0] that"];

    5008 Xss Critical "script without letters" on FIELDS, view Script,
        any ["["],
        pattern r"(?:[!+]*\[[!+\[\]()]*\][+\[\]()!]*){4,}",
        hits ["[][(![]+[])[+[]]+(![]+[])[!+[]+!+[]]]", "(![]+[])[+!+[]]+(![]+[])[!+[]+!+[]]"], misses ["[[1],[2],[3]]", "items[]", "a[0][1]"];

    5009 Xss Error "image or media from a made-up source" on VALUES, view Base,
        any ["<img", "<video", "<audio", "<source", "<input", "<body", "<image", "<details", "<track", "<picture", "<form", "<textarea", "<button", "<isindex", "<select", "<a ", "<a/"],
        pattern r#"<(?:img|video|audio|source|input|image|track|picture)[ /][^>]{0,100}src ?= ?["'`]?(?:[x#0-9]?["'`]? ?(?:[ />]|$)|//|data:text|:)|<(?:form|isindex)[ /][^>]{0,200}action ?=|<(?:body|details|textarea|button|select|input)[ /][^>]{1,200}(?:=|open|autofocus)|<a[ /][^>]{0,100}href ?= ?["']?(?:[a-z]*script|data|&|%)"#,
        hits ["<img src=x >", "<form action=//x>", "<video src=//x>"], misses ["<img src=\"https://example.com/a.png\">", "<a href=\"/about\">", "image source"];

    5010 Xss Warning "quote or bracket that closes into markup" on FIELDS, view Base,
        any ["\">", "'>", "\" >", "' >", "\"/>", "'/>", "\" />", "' />", "</", "-->", "--!>"],
        pattern r#"^[^<>]{0,40}["'] ?/?>|^[^<>"']{0,40}</(?:title|textarea|style|script|xmp|noscript|noembed|select|option|a|div|td|table|template|iframe)\b|--!?> ?<"#,
        hits ["x\"><b", "</textarea>", "'>"], misses ["<p class=\"a\">", "a > b", "<b>x</b>"];

    5011 Xss Critical "markup after a closing quote" on FIELDS, view Base,
        any ["\"", "'"],
        pattern r#"^[^<>]{0,60}["'] ?\)?/?> ?<[a-z!/?]|^[^<>]{0,80}["'] ?/?>[^<]{0,40}<(?:script|img|svg|iframe|body|input|details|video|audio|a |a/|b |p |div|x|style|object|embed|math|form|marquee)"#,
        hits ["\"><b onx", "'><img src=x", "\"/><a href"], misses ["<a href=\"x\"><b>y</b></a>", "\"5\" > 3", "'a' < 'b'"];

    5012 Xss Error "element that is rare in text" on AND_AGENT, view Base,
        any ["<"],
        pattern r"<[/\x80-\xff]*(?:svg|math|meta|noscript|keygen|listing|marquee|xmp|animate|set|htmlxml)(?:$|[ />\x80-\xff])",
        hits ["<svg/onload=1", "<meta charset=x>"], misses ["<section>", "x < set y", "<xml>"];

    5013 Xss Critical "markup in UTF-7" on VALUES, view Base,
        any ["adw-"],
        pattern r"(?:^|[^a-z0-9])[+ ]?adw-.{1,60}[+ ]ad4-",
        hits ["+ADw-script+AD4-alert(1)", "x+ADw-/b+AD4-"], misses ["adw-2024", "roadwork ad4-b"];
};
