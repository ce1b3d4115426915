"""How many digits a telephone number has behind the calling code of its country.

Of fixed lines and mobiles, by the metadata of libphonenumber 9.0.43, without numbers of machines. More than 11, which
a few plans have room for, nobody has: there a number that follows would be taken for more of it.
"""

# (least, most) -> codes. No code begins with another one (ITU-T E.164).
PLANS = {
    (6, 6): "298 299 672 681 687",
    (6, 7): "597 688 690",
    (6, 9): "252 359 376 421 508",
    (6, 10): "53 63 82 95 98 358 685 880",
    (6, 11): "39 43 49 352",
    (7, 7): "238 239 246 248 269 291 297 501 592 673 674 676 677 678 679 680 683 691 692 960",
    (7, 8): "230 241 267 372 507 599 670 675 961 975",
    (7, 9): "46 220 231 254 265 354 423 595 967",
    (7, 10): "243 353",
    (7, 11): "62 86 381",
    (8, 8): "45 47 65 216 222 223 226 227 228 232 235 236 253 257 266 268 350 356 357 370 371 373 374 382 386 389 502 "
    "503 504 505 506 509 591 598 686 689 852 853 965 968 973 974 993",
    (8, 9): "32 36 51 66 213 224 250 258 264 355 377 385 387 593 855 886 962 963 970 971 972",
    (8, 10): "20 57 60 64 378 850 856 964 976 977",
    (8, 11): "383",
    (9, 9): "27 31 33 34 40 41 48 56 61 93 94 211 212 218 221 233 237 240 242 244 245 249 251 255 256 260 261 262 263 "
    "351 375 380 420 590 594 596 966 992 994 995 996 998",
    (9, 10): "44 81 84 92",
    (10, 10): "1 7 30 52 58 90 91 225 229 234",
    (10, 11): "54 55",
}
DIGITS = {code: span for span, codes in PLANS.items() for code in codes.split()}


def plan_of(digits: str) -> tuple[int, int] | None:
    """(least, most) digits of a number that begins with its calling code, that code counted; None where it has none."""
    for size in (1, 2, 3):
        if digits[:size] in DIGITS:
            least, most = DIGITS[digits[:size]]
            return size + least, size + most
    return None
