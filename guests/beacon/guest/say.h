/* Text lines on the text port, each beginning with "beacon: ". */
#pragma once

/* Formats: %s string, %d unsigned decimal, %x hexadecimal; numbers are uint64_t. One line, whole, whoever else speaks. */
void say(const char *format, ...);
