/* SPDX-License-Identifier: MIT
 *
 * Rows of imap-response.c: name, what the server sends, the events. "ERROR": the parser gives up.
 */

/* --- status responses --- */
{ "ok", IN ("A1 OK done\r\n"), "A1 OK 'done'\n" },
{ "no and bad", IN ("A1 NO no\r\na2 bad  what?\r\n"), "A1 NO 'no'\na2 BAD 'what?'\n" },
{ "greeting", IN ("* OK [CAPABILITY IMAP4rev1 sasl-ir AUTH=PLAIN] Hi.\r\n"),
  "* OK [CAPABILITY IMAP4rev1 sasl-ir AUTH=PLAIN] <IMAP4REV1> <SASL-IR> <AUTH=PLAIN> 'Hi.'\n" },
{ "preauth and bye", IN ("* PREAUTH hello\r\n* BYE bye\r\n"), "* PREAUTH 'hello'\n* BYE 'bye'\n" },
{ "no text", IN ("A1 OK\r\nA2 OK \r\n* OK\r\n"), "A1 OK ''\nA2 OK ''\n* OK ''\n" },
{ "code without text", IN ("A1 OK [READ-ONLY]\r\n"), "A1 OK [READ-ONLY] ''\n" },
{ "bare line feeds", IN ("A1 OK x\n* 3 EXISTS\n"), "A1 OK 'x'\nexists 3\n" },
{ "stray CR in text", IN ("A1 OK x\ry\r\r\n"), "A1 OK 'x\ry\r'\n" },
{ "quotes in text do not matter", IN ("* OK it's \"half {3} (open\r\n* 1 EXISTS\r\n"),
  "* OK 'it's \"half {3} (open'\nexists 1\n" },
{ "codes without arguments",
  IN ("a NO [ALERT] 1\r\na NO [TRYCREATE] 2\r\na OK [READ-WRITE] 3\r\na OK [NOMODSEQ] 4\r\n"
      "a NO [NOPERM] 5\r\na NO [OVERQUOTA] 6\r\na NO [LIMIT] 7\r\na NO [TOOBIG] 8\r\n"
      "a NO [ALREADYEXISTS] 9\r\na NO [nonexistent] 10\r\na NO [INUSE] 11\r\na NO [CANNOT] 12\r\n"
      "a NO [AUTHENTICATIONFAILED] 13\r\na NO [AUTHORIZATIONFAILED] 14\r\na NO [UNAVAILABLE] 15\r\n"
      "a NO [EXPUNGEISSUED] 16\r\na NO [THROTTLED] 17\r\n* OK [CLOSED] 18\r\n"
      "a NO [HASCHILDREN] 19\r\na NO [COMPRESSIONACTIVE] 20\r\na NO [EXPIRED] 21\r\n"
      "a NO [PRIVACYREQUIRED] 22\r\na NO [CONTACTADMIN] 23\r\na BAD [CLIENTBUG] 24\r\n"
      "a NO [SERVERBUG] 25\r\na NO [UIDNOTSTICKY] 26\r\na NO [NOTSAVED] 27\r\n"),
  "a NO [ALERT] '1'\na NO [TRYCREATE] '2'\na OK [READ-WRITE] '3'\na OK [NOMODSEQ] '4'\n"
  "a NO [NOPERM] '5'\na NO [OVERQUOTA] '6'\na NO [LIMIT] '7'\na NO [TOOBIG] '8'\n"
  "a NO [ALREADYEXISTS] '9'\na NO [NONEXISTENT] '10'\na NO [INUSE] '11'\na NO [CANNOT] '12'\n"
  "a NO [AUTHENTICATIONFAILED] '13'\na NO [AUTHORIZATIONFAILED] '14'\na NO [UNAVAILABLE] '15'\n"
  "a NO [EXPUNGEISSUED] '16'\na NO [THROTTLED] '17'\n* OK [CLOSED] '18'\n"
  "a NO [HASCHILDREN] '19'\na NO [COMPRESSIONACTIVE] '20'\na NO [EXPIRED] '21'\n"
  "a NO [PRIVACYREQUIRED] '22'\na NO [CONTACTADMIN] '23'\na BAD [CLIENTBUG] '24'\n"
  "a NO [SERVERBUG] '25'\na NO [UIDNOTSTICKY] '26'\na NO [NOTSAVED] '27'\n" },
{ "codes with numbers",
  IN ("* OK [UIDVALIDITY 1700000000] v\r\n* OK [UIDNEXT 4294967295] n\r\n* OK [UNSEEN 12] u\r\n"
      "* OK [HIGHESTMODSEQ 9223372036854775807] h\r\n* OK [UIDVALIDITY 0] z\r\n"),
  "* OK [UIDVALIDITY 1700000000] n=1700000000 'v'\n* OK [UIDNEXT 4294967295] n=4294967295 'n'\n"
  "* OK [UNSEEN 12] n=12 'u'\n* OK [HIGHESTMODSEQ 9223372036854775807] n=9223372036854775807 'h'\n"
  "* OK [UIDVALIDITY 0] 'z'\n" },
{ "codes with bad numbers",
  IN ("* OK [UIDVALIDITY 4294967296] v\r\n* OK [UIDNEXT -1] n\r\n* OK [UNSEEN] u\r\n"
      "* OK [HIGHESTMODSEQ 9223372036854775808] h\r\n"),
  "* OK [UIDVALIDITY 4294967296] malformed 'v'\n* OK [UIDNEXT -1] malformed 'n'\n"
  "* OK [UNSEEN] malformed 'u'\n* OK [HIGHESTMODSEQ 9223372036854775808] malformed 'h'\n" },
{ "permanent flags",
  IN ("* OK [PERMANENTFLAGS (\\Answered \\flagged $b a[1] \\Deleted \\Seen \\Draft \\*)] Limited\r\n"
      "* OK [PERMANENTFLAGS ()] None\r\n"),
  "* OK [PERMANENTFLAGS (\\Answered \\flagged $b a[1] \\Deleted \\Seen \\Draft \\*)]"
  " flags=SAFDT,$b a[1] any 'Limited'\n* OK [PERMANENTFLAGS ()] flags=, 'None'\n" },
{ "append uid",
  IN ("A1 OK [APPENDUID 38505 3955] done\r\nA2 OK [APPENDUID 1 3:4,9] done\r\n"
      "A3 OK [APPENDUID 0 1] x\r\nA4 OK [APPENDUID 1 *] x\r\nA5 OK [APPENDUID 1] x\r\n"),
  "A1 OK [APPENDUID 38505 3955] v=38505 set=3955 'done'\n"
  "A2 OK [APPENDUID 1 3:4,9] v=1 set=3:4,9 'done'\n"
  "A3 OK [APPENDUID 0 1] malformed 'x'\nA4 OK [APPENDUID 1 *] malformed 'x'\n"
  "A5 OK [APPENDUID 1] malformed 'x'\n" },
{ "copy uid keeps the order",
  IN ("A1 OK [COPYUID 38505 304,319:320 3956:3958] Done\r\nA2 OK [COPYUID 1 9,3 10:11] x\r\n"),
  "A1 OK [COPYUID 38505 304,319:320 3956:3958] v=38505 from=304,319:320 to=3956:3958 'Done'\n"
  "A2 OK [COPYUID 1 9,3 10:11] v=1 from=9,3 to=10:11 'x'\n" },
{ "copy uid that cannot be",
  IN ("A1 OK [COPYUID 1 1:2 5] x\r\nA2 OK [COPYUID 1 1:4294967295 1:5] x\r\n"
      "A3 OK [COPYUID 1 1,2, 5:6] x\r\nA4 OK [COPYUID 1 0 5] x\r\nA5 OK [COPYUID 1 1:* 5:*] x\r\n"
      "A6 OK [COPYUID 1 1] x\r\n"),
  "A1 OK [COPYUID 1 1:2 5] malformed 'x'\nA2 OK [COPYUID 1 1:4294967295 1:5] malformed 'x'\n"
  "A3 OK [COPYUID 1 1,2, 5:6] malformed 'x'\nA4 OK [COPYUID 1 0 5] malformed 'x'\n"
  "A5 OK [COPYUID 1 1:* 5:*] malformed 'x'\nA6 OK [COPYUID 1 1] malformed 'x'\n" },
{ "copy uid of everything is not expanded",
  IN ("A1 OK [COPYUID 1 1:4294967295 1:4294967295] x\r\n"),
  "A1 OK [COPYUID 1 1:4294967295 1:4294967295] v=1 from=1:4294967295 to=1:4294967295 'x'\n" },
{ "modified", IN ("A1 OK [MODIFIED 9,7] x\r\nA2 NO [MODIFIED 7,] x\r\n"),
  "A1 OK [MODIFIED 9,7] set=7,9 'x'\nA2 NO [MODIFIED 7,] malformed 'x'\n" },
{ "unknown code", IN ("* OK [XFOO \"a (b] c] text\r\n* NO [REFERRAL imap://h/] r\r\n"),
  "* OK [XFOO \"a (b]? 'c] text'\n* NO [REFERRAL imap://h/] 'r'\n" },
{ "code with an odd name",
  IN ("* OK [X\033[2J\303y z] t\r\n* OK [ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZ] t\r\n"),
  "* OK [X?[2J?Y z]? 't'\n* OK [ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMN]? 't'\n" },
{ "code that does not end", IN ("* OK [ALERT text\r\n"), "* OK '[ALERT text'\n" },
{ "empty code", IN ("* OK [] text\r\n"), "* OK []? 'text'\n" },
{ "control characters in text", IN ("* OK \033[2J %s%n\177\r\n"), "* OK '\033[2J %s%n\177'\n" },
{ "tag is a word only", IN ("A1 FETCH x\r\n"), "ERROR\n" },
{ "tagged preauth", IN ("A1 PREAUTH x\r\n"), "ERROR\n" },
{ "tagged bye", IN ("A1 BYE x\r\n"), "ERROR\n" },
{ "tag alone", IN ("A1\r\n"), "ERROR\n" },
{ "empty tag", IN (" OK x\r\n"), "ERROR\n" },
{ "empty line", IN ("\r\n"), "ERROR\n" },
{ "empty line with LF", IN ("\n"), "ERROR\n" },
{ "starts with a parenthesis", IN ("(* OK)\r\n"), "ERROR\n" },
{ "starts with a string", IN ("\"A1\" OK\r\n"), "ERROR\n" },
{ "starts with a literal", IN ("{2}\r\nA1 OK\r\n"), "ERROR\n" },
{ "CR without LF in a list", IN ("* FLAGS (\rx)\r\n"), "ERROR\n" },
{ "NUL in text", IN ("* OK a\0b\r\n"), "ERROR\n" },
{ "NUL at the start", IN ("\0* OK\r\n"), "ERROR\n" },
{ "NUL in a word", IN ("* LIST () NIL a\0b\r\n"), "ERROR\n" },
{ "http", IN ("HTTP/1.1 400 Bad Request\r\n"), "ERROR\n" },

/* --- continuation --- */
{ "continuation", IN ("+ idling\r\n"), "+ 'idling'\n" },
{ "continuation without text", IN ("+\r\n+ \r\n"), "+ ''\n+ ''\n" },
{ "continuation without space", IN ("+Ready\r\n"), "+ 'Ready'\n" },
{ "challenge", IN ("+ PDE4OTYuNjk3MTcwOTUyQHg+\r\n"), "+ 'PDE4OTYuNjk3MTcwOTUyQHg+'\n" },

/* --- plain data --- */
{ "capability", IN ("* CAPABILITY IMAP4rev1 STARTTLS auth=gssapi\r\n* capability\r\n"),
  "capability <IMAP4REV1> <STARTTLS> <AUTH=GSSAPI>\ncapability\n" },
{ "enabled", IN ("* ENABLED CONDSTORE QResync\r\n* ENABLED\r\n"),
  "enabled <CONDSTORE> <QRESYNC>\nenabled\n" },
{ "id", IN ("* ID (\"name\" \"Cyrus\" \"version\" NIL)\r\n* ID NIL\r\n* ID ()\r\n"),
  "id name Cyrus version -\nid\nid\n" },
{ "id broken", IN ("* ID ((\"name\"))\r\n"), "ERROR\n" },
{ "namespace",
  IN ("* NAMESPACE ((\"INBOX.\" \".\")(\"#mh\" NIL \"X-PARAM\" (\"a\" \"b\"))) NIL ((\"\" \"/\"))\r\n"),
  "namespace <INBOX.>.<#mh>- 0 <>/\n" },
{ "namespace none", IN ("* NAMESPACE NIL NIL NIL\r\n"), "namespace 0 0 0\n" },
{ "namespace broken", IN ("* NAMESPACE ((\"a\"))\r\n"), "ERROR\n" },
{ "list",
  IN ("* LIST (\\HasNoChildren \\Trash) \"/\" \"Deleted Items\"\r\n* LIST (\\Noselect) \"/\" \"\"\r\n"
      "* LIST () NIL INBOX\r\n* LIST (\\HASCHILDREN) \".\" {5}\r\na\"b\\c\r\n"
      "* LIST (\\NonExistent \\noinferiors \\X \\subscribed) \"/\" ~{1}\r\nx\r\n"),
  "list 10 \\Trash / <Deleted Items>\nlist 1 - / <>\nlist 0 - 0 <INBOX>\n"
  "list 8 - . <a\"b\\c>\nlist 26 - / <x>\n" },
{ "list of names nobody quoted",
  IN ("* LIST (\\sent) \"/\" [Gmail]/Sent\r\n* LIST () \"/\" NIL\r\n* LIST () \"\\\\\" a\\b\r\n"
      "* LIST () \"\" x\r\n* LIST () / y{3}\r\n"),
  "list 0 \\Sent / <[Gmail]/Sent>\nlist 0 - / <NIL>\nlist 0 - \\ <a\\b>\nlist 0 - 0 <x>\n"
  "list 0 - / <y{3}>\n" },
{ "list with extended data",
  IN ("* LIST (\\Subscribed) \"/\" \"a\" (\"CHILDINFO\" (\"SUBSCRIBED\"))\r\n"
      "* LIST () \"/\" \"new\" (\"OLDNAME\" (\"old\"))\r\n* LSUB () \"/\" lists\r\n"),
  "list 20 - / <a>\nlist 0 - / <new>\nlsub 0 - / <lists>\n" },
{ "list with odd names",
  IN ("* LIST () \"/\" \"..\"\r\n* LIST () \".\" \"a/b\"\r\n* LIST () \"/\" \"\303\244\377\"\r\n"
      "* LIST () \"/\" {4}\r\na\r\nb\r\n"),
  "list 0 - / <..>\nlist 0 - . <a/b>\nlist 0 - / <\303\244\377>\nlist 0 - / <a\r\nb>\n" },
{ "list delimiter too long", IN ("* LIST () \"//\" a\r\n"), "ERROR\n" },
{ "list without name", IN ("* LIST () \"/\"\r\n"), "ERROR\n" },
{ "list without attributes", IN ("* LIST \"/\" a\r\n"), "ERROR\n" },
{ "list nested attributes", IN ("* LIST ((\\Sent)) \"/\" a\r\n"), "ERROR\n" },
{ "list not closed", IN ("* LIST (\\Sent \"/\" a\r\n"), "ERROR\n" },
{ "status",
  IN ("* STATUS \"a b\" (MESSAGES 231 UIDNEXT 44292 UIDVALIDITY 7 UNSEEN 3 HIGHESTMODSEQ 99"
      " DELETED 2 SIZE 123456789012 X-GUID abc)\r\n* STATUS INBOX ()\r\n"),
  "status <a b> 7f m=231 n=44292 v=7 u=3 d=2 h=99 s=123456789012\n"
  "status <INBOX> 0 m=0 n=0 v=0 u=0 d=0 h=0 s=0\n" },
{ "status with nonsense",
  IN ("* STATUS a (MESSAGES NIL UIDNEXT 4294967296 X (1 (2)) UNSEEN 1)\r\n"),
  "status <a> 8 m=0 n=0 v=0 u=1 d=0 h=0 s=0\n" },
{ "status without value", IN ("* STATUS a (MESSAGES)\r\n"), "ERROR\n" },
{ "status without list", IN ("* STATUS a\r\n"), "ERROR\n" },
{ "status not closed", IN ("* STATUS a (X (\r\n"), "ERROR\n" },
{ "flags", IN ("* FLAGS (\\Seen \\Recent b a b \\X)\r\n* FLAGS ()\r\n"),
  "flags flags=S,a b\nflags flags=,\n" },
{ "flags broken", IN ("* FLAGS \\Seen\r\n"), "ERROR\n" },
{ "numbers", IN ("* 0 EXISTS\r\n* 4294967295 EXISTS\r\n* 3 recent\r\n* 1 EXPUNGE\r\n"),
  "exists 0\nexists 4294967295\nrecent 3\nexpunge 1\n" },
{ "exists with something behind", IN ("* 3 EXISTS (x {1}\r\ny)\r\n* 2 EXISTS\r\n"),
  "exists 3\nexists 2\n" },
{ "expunge 0", IN ("* 0 EXPUNGE\r\n"), "ERROR\n" },
{ "fetch 0", IN ("* 0 FETCH (UID 1)\r\n"), "ERROR\n" },
{ "exists above 32 bits", IN ("* 4294967296 EXISTS\r\n"), "ERROR\n" },
{ "exists above 63 bits", IN ("* 18446744073709551616 EXISTS\r\n"), "ERROR\n" },
{ "exists negative", IN ("* -1 EXISTS\r\n* 1 EXISTS\r\n"), "exists 1\n" },
{ "number and nothing", IN ("* 5\r\n"), "ERROR\n" },
{ "star and nothing", IN ("*\r\n"), "ERROR\n" },
{ "star and parenthesis", IN ("* (x)\r\n"), "ERROR\n" },
{ "quota",
  IN ("* QUOTA \"\" (storage 10 512 MESSAGE 1 NIL)\r\n* QUOTA root ()\r\n"
      "* QUOTAROOT INBOX \"\" other\r\n* QUOTAROOT x\r\n"),
  "quota <> STORAGE=10/512\nquota <root>\nquotaroot <INBOX> : <> <other>\nquotaroot <x> :\n" },
{ "quota broken", IN ("* QUOTA \"\" (STORAGE 10)\r\n"), "ERROR\n" },
{ "rights", IN ("* MYRIGHTS \"a b\" rwiptsldaex\r\n* ACL INBOX fred lr \"x\" r\r\n"),
  "rights <a b> rwiptsldaex\n" },
{ "rights missing", IN ("* MYRIGHTS a\r\n"), "ERROR\n" },

/* --- unknown responses --- */
{ "unknown",
  IN ("* XFOO \"half ((( {2}\r\nab\" {3+}\r\n\r\n) {0}\r\n\r\n* 7 XBAR (\r\n* 1 EXISTS\r\n"),
  "exists 1\n" },
{ "unknown with what is no literal",
  IN ("* X {a}\r\n* X {}\r\n* X {-1}\r\n* X {1} \r\n* X {18446744073709551616}\r\n* 1 EXISTS\r\n"),
  "exists 1\n" },
{ "unknown with literal8", IN ("* X ~{3}\r\n\0\r\n\r\n* 1 EXISTS\r\n"), "exists 1\n" },
{ "unknown with huge literal", IN ("* X {4294967296}\r\nabc"), "ERROR\n" },
{ "unknown number", IN ("* 99999999999999999999 XFOO\r\n* 1 EXISTS\r\n"), "exists 1\n" },

/* --- search --- */
{ "search", IN ("* SEARCH 5 3 4 9 3\r\n* SEARCH\r\n* SEARCH 2 (MODSEQ 917)\r\n"),
  "search set=3:5,9\nsearch set=\nsearch set=2 modseq=917\n" },
{ "search of large numbers", IN ("* SEARCH 4294967295 2147483648\r\n"),
  "search set=2147483648,4294967295\n" },
{ "search 0", IN ("* SEARCH 0\r\n"), "ERROR\n" },
{ "search above 32 bits", IN ("* SEARCH 4294967296\r\n"), "ERROR\n" },
{ "search words", IN ("* SEARCH a\r\n"), "ERROR\n" },
{ "search not closed", IN ("* SEARCH 1 (MODSEQ 5\r\n"), "ERROR\n" },
{ "esearch",
  IN ("* ESEARCH (TAG \"A282\") UID MIN 2 MAX 47 ALL 2,10:12,4 COUNT 5 MODSEQ 99\r\n"
      "* ESEARCH (TAG A1)\r\n* ESEARCH\r\n* ESEARCH COUNT 0\r\n* ESEARCH UID ALL 1:4294967295\r\n"),
  "esearch tag=A282 uid set=2,4,10:12 count=5 min=2 max=47 modseq=99 all\n"
  "esearch tag=A1 set=\nesearch set=\nesearch set= count=0\nesearch uid set=1:4294967295 all\n" },
{ "esearch with the unknown",
  IN ("* ESEARCH (TAG \"x\") UID PARTIAL (1:100 1,2,3) X 4,5:6 Y \"z\" Z ((a) b) ALL 7 COUNT 1\r\n"),
  "esearch tag=x uid set=7 count=1 all\n" },
{ "esearch star", IN ("* ESEARCH UID ALL 1:*\r\n"), "ERROR\n" },
{ "esearch trailing comma", IN ("* ESEARCH UID ALL 1,\r\n"), "ERROR\n" },
{ "esearch comma then name", IN ("* ESEARCH UID ALL 1, COUNT 1\r\n"), "ERROR\n" },
{ "esearch without value", IN ("* ESEARCH UID COUNT\r\n"), "ERROR\n" },
{ "esearch unknown without value", IN ("* ESEARCH UID X\r\n"), "ERROR\n" },
{ "esearch count above 32 bits", IN ("* ESEARCH COUNT 4294967296\r\n"), "ERROR\n" },
{ "vanished",
  IN ("* VANISHED 41,43:116\r\n* VANISHED (EARLIER) 300:310,405,411\r\n* VANISHED 1:4294967295\r\n"
      "* VANISHED 9:5,1\r\n"),
  "vanished set=41,43:116\nvanished earlier set=300:310,405,411\nvanished set=1:4294967295\n"
  "vanished set=1,5:9\n" },
{ "vanished star", IN ("* VANISHED 1:*\r\n"), "ERROR\n" },
{ "vanished zero", IN ("* VANISHED 0:5\r\n"), "ERROR\n" },
{ "vanished trailing comma", IN ("* VANISHED 1,2,\r\n"), "ERROR\n" },
{ "vanished nothing", IN ("* VANISHED\r\n"), "ERROR\n" },
{ "vanished without comma", IN ("* VANISHED 1 2\r\n"), "ERROR\n" },
{ "vanished later", IN ("* VANISHED (LATER) 1\r\n"), "ERROR\n" },

/* --- fetch --- */
{ "fetch",
  IN ("* 12 FETCH (UID 42 FLAGS (\\Seen $Work \\RECENT a $Work) INTERNALDATE"
      " \"17-Jul-1996 02:44:25 -0700\" RFC822.SIZE 4286 MODSEQ (624140003))\r\n"),
  "fetch 12\n  end 12 uid=42 1f flags=S,$Work a date=837596665 size=4286 modseq=624140003\n" },
{ "fetch in another order",
  IN ("* 12 FETCH (MODSEQ (5) rfc822.size 9223372036854775807 FLAGS (\\DELETED \\draft \\Flagged"
      " \\answered \\Unknown) UID 4294967295)\r\n"),
  "fetch 12\n  end 12 uid=4294967295 1b flags=AFDT, size=9223372036854775807 modseq=5\n" },
{ "fetch flags before modseq", IN ("* 1 FETCH (FLAGS (\\Seen x) MODSEQ (7))\r\n"),
  "fetch 1\n  end 1 uid=0 12 flags=S,x modseq=7\n" },
{ "fetch nothing", IN ("* 1 FETCH ()\r\n* 1 FETCH (FLAGS ())\r\n"),
  "fetch 1\n  end 1 uid=0 0\nfetch 1\n  end 1 uid=0 2 flags=,\n" },
{ "fetch body",
  IN ("* 1 FETCH (UID 5 BODY[] {11}\r\nhello\r\n)x(y FLAGS (\\Seen))\r\n* 2 EXISTS\r\n"),
  "fetch 1\n  body 1/5 [] 11: 'hello\\r\\n)x(y'\n  end 1 uid=5 23 flags=S,\nexists 2\n" },
{ "fetch body before uid", IN ("* 1 FETCH (BODY[]<0> {3}\r\nabc UID 9)\r\n"),
  "fetch 1\n  body 1/0 []<0> 3: 'abc'\n  end 1 uid=9 21\n" },
{ "fetch body without a space", IN ("* 1 FETCH (BODY[]{3}\r\nabc UID 9)\r\n"),
  "fetch 1\n  body 1/0 [] 3: 'abc'\n  end 1 uid=9 21\n" },
{ "fetch body of other shapes",
  IN ("* 1 FETCH (UID 5 BODY[] \"a\\\"b\" BODY[HEADER] NIL BODY[TEXT] \"\" BODY[1] {0}\r\n"
      " BODY[2]<65536> ~{2}\r\nxy BINARY[3]<7> {1+}\r\nz)\r\n"),
  "fetch 1\n  body 1/5 [] 3: 'a\\\"b'\n  body 1/5 [HEADER] 0 nil: ''\n  body 1/5 [TEXT] 0: ''\n"
  "  body 1/5 [1] 0: ''\n  body 1/5 [2]<65536> 2: 'xy'\n  binary 1/5 [3]<7> 1: 'z'\n"
  "  end 1 uid=5 21\n" },
{ "fetch sections",
  IN ("* 1 FETCH (BODY[header.fields (date  \"From\")] {1}\r\nx BODY[1.2.mime]<0.10> {1}\r\ny"
      " BODY[HEADER.FIELDS ({4}\r\na]b()]<9> NIL)\r\n"),
  "fetch 1\n  body 1/0 [HEADER.FIELDS (DATE FROM)] 1: 'x'\n  body 1/0 [1.2.MIME]<0> 1: 'y'\n"
  "  body 1/0 [HEADER.FIELDS (A]B()]<9> 0 nil: ''\n  end 1 uid=0 20\n" },
{ "fetch what nobody asked",
  IN ("* 1 FETCH (ENVELOPE (\"d\" {3}\r\n)(\" ((NIL NIL \"a]\" [b) ) NIL) BODYSTRUCTURE ((\"a\" \"b\""
      " (\"charset\" \"{5}\"))(NIL)) BODY (\"text\" \"plain\") RFC822 {5}\r\nabcde RFC822.HEADER \"x\""
      " X-GM-MSGID 127 X-GM-LABELS (\\Inbox \"a b\" [c]) X[1 2]<3> {2}\r\n)) EMAILID (M1) THREADID NIL"
      " SAVEDATE \"x\" UID 4)\r\n"),
  "fetch 1\n  end 1 uid=4 1\n" },
{ "fetch with garbage",
  IN ("* 1 FETCH (INTERNALDATE \"yesterday\" RFC822.SIZE NIL UID 3)\r\n"
      "* 2 FETCH (INTERNALDATE NIL FLAGS NIL MODSEQ NIL RFC822.SIZE -1)\r\n"
      "* 3 FETCH (INTERNALDATE {26}\r\n01-Jan-1970 00:00:01 +0000)\r\n"),
  "fetch 1\n  end 1 uid=3 1\nfetch 2\n  end 2 uid=0 0\nfetch 3\n  end 3 uid=0 4 date=1\n" },
{ "fetch twice the same uid", IN ("* 1 FETCH (UID 3 UID 3)\r\n"), "fetch 1\n  end 1 uid=3 1\n" },
{ "fetch keywords nobody could set",
  IN ("* 1 FETCH (FLAGS (\303\244 ok a\001b \"q\" {1}\r\nl))\r\n"), "fetch 1\n  end 1 uid=0 2 flags=,ok q\n" },
{ "fetch spaces everywhere", IN ("* 1 FETCH  ( UID  3  FLAGS ( \\Seen ) ) \r\n"),
  "fetch 1\n  end 1 uid=3 3 flags=S,\n" },
{ "fetch two uids", IN ("* 1 FETCH (UID 3 UID 4)\r\n"), "fetch 1\nERROR\n" },
{ "fetch uid 0", IN ("* 1 FETCH (UID 0)\r\n"), "fetch 1\nERROR\n" },
{ "fetch uid above 32 bits", IN ("* 1 FETCH (UID 4294967296)\r\n"), "fetch 1\nERROR\n" },
{ "fetch uid is a string", IN ("* 1 FETCH (UID \"3\")\r\n"), "fetch 1\nERROR\n" },
{ "fetch uid missing", IN ("* 1 FETCH (UID)\r\n"), "fetch 1\nERROR\n" },
{ "fetch size above 63 bits", IN ("* 1 FETCH (RFC822.SIZE 9223372036854775808)\r\n"),
  "fetch 1\nERROR\n" },
{ "fetch modseq above 63 bits", IN ("* 1 FETCH (MODSEQ (18446744073709551615))\r\n"),
  "fetch 1\nERROR\n" },
{ "fetch modseq not closed", IN ("* 1 FETCH (MODSEQ (1 2))\r\n"), "fetch 1\nERROR\n" },
{ "fetch flags nested", IN ("* 1 FETCH (FLAGS ((\\Seen)))\r\n"), "fetch 1\nERROR\n" },
{ "fetch flags not a list", IN ("* 1 FETCH (FLAGS \\Seen)\r\n"), "fetch 1\nERROR\n" },
{ "fetch without list", IN ("* 1 FETCH\r\n"), "fetch 1\nERROR\n" },
{ "fetch not closed", IN ("* 1 FETCH (UID 1\r\n"), "fetch 1\nERROR\n" },
{ "fetch skip not closed", IN ("* 1 FETCH (X (1\r\n"), "fetch 1\nERROR\n" },
{ "fetch closed twice", IN ("* 1 FETCH (UID 1))\r\n"), "fetch 1\nERROR\n" },
{ "fetch something behind", IN ("* 1 FETCH (UID 1) x\r\n"), "fetch 1\nERROR\n" },
{ "fetch attribute is a list", IN ("* 1 FETCH ((UID) 1)\r\n"), "fetch 1\nERROR\n" },
{ "fetch body is a word", IN ("* 1 FETCH (BODY[] abc)\r\n"), "fetch 1\nERROR\n" },
{ "fetch body is a list", IN ("* 1 FETCH (BODY[] (a))\r\n"), "fetch 1\nERROR\n" },
{ "fetch body is missing", IN ("* 1 FETCH (BODY[])\r\n"), "fetch 1\nERROR\n" },
{ "fetch section not closed", IN ("* 1 FETCH (BODY[HEADER {1}\r\nx)\r\n"), "fetch 1\nERROR\n" },
{ "fetch section brackets", IN ("* 1 FETCH (BODY[[]] {1}\r\nx)\r\n"), "fetch 1\nERROR\n" },
{ "fetch section parenthesis open", IN ("* 1 FETCH (BODY[(] {1}\r\nx)\r\n"), "fetch 1\nERROR\n" },
{ "fetch origin broken", IN ("* 1 FETCH (BODY[]<x> {1}\r\nx)\r\n"), "fetch 1\nERROR\n" },
{ "fetch origin open", IN ("* 1 FETCH (BODY[]<1 {1}\r\nx)\r\n"), "fetch 1\nERROR\n" },
{ "fetch origin negative", IN ("* 1 FETCH (BODY[]<-1> {1}\r\nx)\r\n"), "fetch 1\nERROR\n" },
{ "fetch origin above 63 bits", IN ("* 1 FETCH (BODY[]<9223372036854775808> {1}\r\nx)\r\n"),
  "fetch 1\nERROR\n" },
{ "fetch origin and nothing", IN ("* 1 FETCH (BODY[]<1>)\r\n"), "fetch 1\nERROR\n" },
{ "fetch quoted body with line end", IN ("* 1 FETCH (BODY[] \"a\r\nb\")\r\n"), "fetch 1\nERROR\n" },
{ "fetch quoted body with escaped line end", IN ("* 1 FETCH (BODY[] \"a\\\r\nb\")\r\n"),
  "fetch 1\nERROR\n" },
{ "fetch body cut", IN ("* 1 FETCH (UID 2 BODY[] {10}\r\nabc"),
  "fetch 1\n  body 1/2 [] 10: 'abc' cut\n" },
{ "expunge behind a fetch", IN ("* 1 FETCH (UID 2)\r\n* 1 EXPUNGE\r\n* 1 FETCH (UID 3)\r\n"),
  "fetch 1\n  end 1 uid=2 1\nexpunge 1\nfetch 1\n  end 1 uid=3 1\n" },

/* --- literals --- */
{ "literal above 32 bits", IN ("* 1 FETCH (BODY[] {4294967296}\r\nx"),
  "fetch 1\n  body 1/0 [] 4294967296: 'x' cut\n" },
{ "literal above 63 bits", IN ("* 1 FETCH (BODY[] {9223372036854775808}\r\nx"),
  "fetch 1\nERROR\n" },
{ "literal above 64 bits", IN ("* 1 FETCH (BODY[] {18446744073709551616}\r\nx"),
  "fetch 1\nERROR\n" },
{ "literal negative", IN ("* 1 FETCH (BODY[] {-1}\r\nx"), "fetch 1\nERROR\n" },
{ "literal without number", IN ("* 1 FETCH (BODY[] {}\r\nx"), "fetch 1\nERROR\n" },
{ "literal plus without number", IN ("* 1 FETCH (BODY[] {+}\r\nx"), "fetch 1\nERROR\n" },
{ "literal not closed", IN ("* 1 FETCH (BODY[] {1\r\nx"), "fetch 1\nERROR\n" },
{ "literal with something behind", IN ("* 1 FETCH (BODY[] {1} \r\nx"), "fetch 1\nERROR\n" },
{ "literal with bare LF", IN ("* 1 FETCH (BODY[] {1}\nx)\r\n"),
  "fetch 1\n  body 1/0 [] 1: 'x'\n  end 1 uid=0 20\n" },
{ "literal with CR CR", IN ("* 1 FETCH (BODY[] {1}\r\rx"), "fetch 1\nERROR\n" },
{ "literal plus minus", IN ("* 1 FETCH (BODY[] {1-}\r\nx"), "fetch 1\nERROR\n" },
{ "literal kept too large", IN ("* LIST () \"/\" {1048577}\r\nx"), "ERROR\n" },
{ "literals kept too large together", IN ("* LIST () {3}\r\nabc {1048574}\r\nx"), "ERROR\n" },
{ "literal dropped too large", IN ("* 1 FETCH (RFC822 {67108865}\r\nx"), "fetch 1\nERROR\n" },
{ "literal everywhere",
  IN ("* LIST ({5}\r\n\\Sent) {1}\r\n/ {3}\r\na b\r\n* STATUS {1}\r\nx ({8}\r\nMESSAGES {1}\r\n5)\r\n"
      "* CAPABILITY {2}\r\nid\r\n* ESEARCH (TAG {2}\r\nA1) COUNT 1\r\n"),
  "list 0 \\Sent / <a b>\nstatus <x> 1 m=5 n=0 v=0 u=0 d=0 h=0 s=0\ncapability <ID>\n"
  "esearch tag=A1 set= count=1\n" },
{ "tilde that is no literal", IN ("* LIST () \"/\" ~user\r\n* LIST () \"/\" ~\r\n"),
  "list 0 - / <~user>\nlist 0 - / <~>\n" },
{ "nil everywhere",
  IN ("* CAPABILITY NIL\r\n* LIST (NIL) NIL NIL\r\n* STATUS NIL (NIL NIL)\r\n* MYRIGHTS NIL NIL\r\n"),
  "capability <NIL>\nlist 0 - 0 <NIL>\nstatus <NIL> 0 m=0 n=0 v=0 u=0 d=0 h=0 s=0\nrights <NIL> NIL\n" },
