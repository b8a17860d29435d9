; A guest without an operating system: it writes, reads back and verifies blocks for ever.
; Real mode, SeaBIOS' int 13h. Assemble with: nasm -f bin -o guest.bin guest.asm
;
; Sector S of disk D, once written by operation N, holds 64 times (u32 N, u32 S | D << 28).
; Operations follow from the random numbers x' = x*1664525 + 1013904223 (mod 2^32), three for each:
;   a: block = base + ((a * nblk) >> 32), of eight sectors
;   b: disk  = (((b >> 10) & 255) * ndisk) >> 8
;      first sector of a part = b >> 29; its length = 1 + ((b >> 26) & 7), at most up to the block's end
;   c: a part of the block only, if ((c >> 16) & 255) < ppart; a read, if (c >> 24) < pread
; A table in RAM holds the last operation that wrote each sector; reads are held against it.
; Each boot has a number, from sector 8 of disk 0: operations count from boot << 24 and the random
; numbers start from seed + boot * 0x9E3779B9.
;
; It says on the serial line (hexadecimal, eight digits, end of line):
;   S boot       started                  W operation  a write was acknowledged
;   R operation  a read was right         X operation  a read was wrong
;   ! operation  an I/O error; retried    .            a timer tick, anywhere, without end of line
; and obeys there: R reboot, P power off.

bits 16
cpu 686
org 0x7C00

BUFFER  equ 0x2000                      ; segment of the 4 KiB that are read and written

; What is written is not in a page with code, which an emulator would then translate again.
absolute 0x5000
state:                                  ; read from outside when the guest has stopped
mark:   resd 1                          ; 'VFG1'
seq:    resd 1                          ; operation under way, or last
x:      resd 1
boot:   resd 1
reads:  resd 1
bad:    resd 1
errors: resd 1
touchd: resd 1                          ; pages touched so far
mptr:   resd 1                          ; next page to touch
credit: resd 1                          ; operations due, times 65536
lba:    resd 1                          ; from here on it is private
tag:    resd 1
roll:   resd 1
count:  resw 1
disk:   resb 1
drive:  resb 1
dap:    resb 16
stateend:

section .text

start:  jmp near load
        nop
; ---- parameters, little endian, patched into the image ----
magic:  db 'VFG1'                       ; 04
seed:   dd 1                            ; 08
base:   dd 2                            ; 0C first block that is used, of 4 KiB
nblk:   dd 1                            ; 10 blocks that are used, of each disk
fill:   dd 0                            ; 14 sectors below hold operation 0 at first, others zeroes
ndisk:  db 1                            ; 18 disks
pread:  db 0                            ; 19 of 256 operations so many are reads
ppart:  db 0                            ; 1A and so many are parts of blocks
flags:  db 0                            ; 1B bit 0: as fast as it goes
rate:   dd 0                            ; 1C operations per 65536 ticks
pit:    dw 4772                         ; 20 divisor of 1193182 Hz that gives the tick
touchn: dw 0                            ; 22 pages touched per tick, or per operation if bit 0
mbase:  dd 0x200000                     ; 24 pages that are touched: first byte
mend:   dd 0x200000                     ; 28 and end
rend:   dd 0x200000                     ; 2C from mend up to here RAM holds address * 2654435761
table:  dd 0x200000                     ; 30 the table
nsect:  dd 0                            ; 34 sectors of each disk in it
; ---- the rest of this page is code ----
dap1:   db 0x10, 0                      ; the rest of this program
        dw 7, 0x7E00, 0
        dq 1
gdt:    dq 0
        dw 0xffff, 0, 0x9200, 0x00cf    ; all 4 GiB, data
gdtr:   dw 15
        dd gdt

load:   cli
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7000
        cld
        sti
        mov di, state
        mov cx, stateend - state
        rep stosb
        mov [drive], dl
        mov dword [dap], 0x00080010
        mov word [dap+6], BUFFER
        mov eax, [magic]
        mov [mark], eax
        mov si, dap1
        mov ah, 0x42
        int 0x13
        jc load
        jmp near main
        times 510-($-$$) db 0
        dw 0xAA55

main:   cli
        mov al, 0x34
        out 0x43, al
        mov ax, [pit]
        out 0x40, al
        mov al, ah
        out 0x40, al
        mov word [0x70], tick
        mov word [0x72], 0
        sti
        call number
        call clear
        mov eax, [boot]
        mov ebx, eax
        shl ebx, 24
        mov [seq], ebx
        imul eax, eax, 0x9E3779B9
        add eax, [seed]
        mov [x], eax
        mov eax, [mbase]
        mov [mptr], eax
        mov eax, [boot]
        mov bl, 'S'
        call say

next:   call obey
        test byte [flags], 1
        jz .paced
        call operate
        call touch
        jmp next
.paced: cmp word [credit+2], 0
        je .wait
        dec word [credit+2]
        call operate
        jmp next
.wait:  call touch
        mov eax, [0x46c]
.h:     hlt
        cmp eax, [0x46c]
        je .h
        mov eax, [rate]
        add [credit], eax
        jmp next

; which boot is this: read the number from the disk, store the next
number: mov dword [lba], 8
        mov word [count], 1
        mov byte [disk], 0
        mov ah, 0x42
        call io
        mov ax, BUFFER
        mov es, ax
        mov eax, [es:4]
        mov [boot], eax
        inc dword [es:4]
        mov ah, 0x43
        jmp io

; RAM as it is at the start of each boot
clear:  cli
        call big
        xor eax, eax
        movzx ecx, byte [ndisk]
        imul ecx, [nsect]
        mov edi, [table]
.t:     mov [fs:edi], eax
        add edi, 4
        dec ecx
        jnz .t
        mov edi, [mbase]
.m:     cmp edi, [mend]
        jae .f
        mov [fs:edi], eax
        add edi, 4
        jmp .m
.f:     cmp edi, [rend]
        jae .done
        imul eax, edi, 2654435761
        mov [fs:edi], eax
        add edi, 4
        jmp .f
.done:  sti
        ret

draw:   mov eax, [x]
        imul eax, eax, 1664525
        add eax, 1013904223
        mov [x], eax
        ret

operate:
        inc dword [seq]
        call draw
        mul dword [nblk]
        add edx, [base]
        shl edx, 3
        mov [lba], edx
        mov word [count], 8
        call draw
        mov [roll], eax
        shr eax, 10
        movzx eax, al
        movzx ecx, byte [ndisk]
        imul eax, ecx
        mov [disk], ah
        call draw
        mov ebp, eax
        shr ebp, 24                     ; read or write
        shr eax, 16
        cmp al, [ppart]
        jae .whole
        mov eax, [roll]
        shr eax, 29
        add [lba], eax
        mov ecx, [roll]
        shr ecx, 26
        and cx, 7
        inc cx
        mov dx, 8
        sub dx, ax
        cmp cx, dx
        jbe .fits
        mov cx, dx
.fits:  mov [count], cx
.whole: movzx eax, byte [disk]
        shl eax, 28
        or eax, [lba]
        mov [tag], eax
        mov ax, BUFFER
        mov es, ax
        movzx ax, byte [pread]
        cmp bp, ax
        jb verify

; write, then note it in the table
        mov eax, [seq]
        mov edx, [tag]
        mov bx, [count]
        xor di, di
.s:     mov cx, 64
.f:     mov [es:di], eax
        mov [es:di+4], edx
        add di, 8
        loop .f
        inc edx
        dec bx
        jnz .s
        mov ah, 0x43
        call io
        call entry
        mov eax, [seq]
        mov cx, [count]
.n:     mov [fs:edi], eax
        add edi, 4
        loop .n
        sti
        mov bl, 'W'
        jmp say

; read, then hold it against the table
verify: mov ah, 0x42
        call io
        call entry
        mov edx, [tag]
        mov bx, [count]
        xor si, si
        xor bp, bp                      ; faults
.s:     mov eax, [fs:edi]
        add edi, 4
        push edx
        test eax, eax
        jnz .known
        cmp dword [boot], 0
        jne .skip                       ; written by an earlier boot, or never
        mov ecx, edx
        and ecx, 0x0fffffff
        cmp ecx, [fill]
        jb .known
        xor edx, edx
.known: mov cx, 64
.c:     cmp [es:si], eax
        jne .bad
        cmp [es:si+4], edx
        jne .bad
        add si, 8
        loop .c
        jmp .ok
.bad:   inc bp
.skip:
.ok:    pop edx
        inc edx
        dec bx
        jz .end
        mov si, [count]                 ; start of the next sector
        sub si, bx
        shl si, 9
        jmp .s
.end:   sti
        inc dword [reads]
        mov eax, [seq]
        mov bl, 'R'
        test bp, bp
        jz say
        inc dword [bad]
        mov bl, 'X'
        jmp say

; fs:edi = table entry of the first sector; interrupts are off on return
entry:  cli
        call big
        movzx edi, byte [disk]
        imul edi, [nsect]
        add edi, [lba]
        shl edi, 2
        add edi, [table]
        ret

; ah = 42h read, 43h write: [count] sectors at [lba] of [disk], until it succeeds
io:     mov [roll], ah
.again: mov eax, [lba]
        mov [dap+8], eax
        mov ax, [count]
        mov [dap+2], ax
        mov dl, [drive]
        add dl, [disk]
        mov ah, [roll]
        xor al, al
        mov si, dap
        int 0x13
        mov ax, BUFFER
        mov es, ax
        jnc ret_
        inc dword [errors]
        mov eax, [seq]
        mov bl, '!'
        call say
        jmp .again

touch:  movzx ecx, word [touchn]
        jcxz ret_
        mov eax, [mbase]
        cmp eax, [mend]
        jae ret_
        cli
        call big
        mov edi, [mptr]
.l:     inc dword [fs:edi]
        inc dword [touchd]
        add edi, 4096
        cmp edi, [mend]
        jb .c
        mov edi, [mbase]
.c:     dec cx
        jnz .l
        mov [mptr], edi
        sti
ret_:   ret

; give fs all of memory: the BIOS takes it back at every call
big:    push eax
        push bx
        lgdt [gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp short .p
.p:     mov bx, 8
        mov fs, bx
        and al, 0xfe
        mov cr0, eax
        jmp short .q
.q:     pop bx
        pop eax
        ret

; bl, then eax in hexadecimal
say:    push eax
        mov al, bl
        call putc
        pop eax
        mov cx, 8
.l:     rol eax, 4
        push eax
        and al, 15
        cmp al, 10
        sbb al, 0x69
        das
        call putc
        pop eax
        loop .l
        mov al, 10
putc:   mov ah, al
.w:     cli
        mov dx, 0x3fd
        in al, dx
        test al, 0x20
        jnz .go
        sti
        jmp .w
.go:    mov dx, 0x3f8
        mov al, ah
        out dx, al
        sti
        ret

; int 1Ch
tick:   push ax
        push dx
        mov dx, 0x3fd
        in al, dx
        test al, 0x20
        jz .busy
        mov dx, 0x3f8
        mov al, '.'
        out dx, al
.busy:  pop dx
        pop ax
        iret

obey:   mov dx, 0x3fd
        in al, dx
        test al, 1
        jz ret_
        mov dx, 0x3f8
        in al, dx
        cmp al, 'R'
        je .reboot
        cmp al, 'P'
        jne ret_
        mov dx, 0x604                   ; SeaBIOS puts ACPI's PM1a control here: S5, enable
        mov ax, 0x2000
        out dx, ax
        jmp .halt
.reboot:
        mov al, 0xfe
        out 0x64, al
.halt:  cli
        hlt
        jmp .halt

        times 4096-($-$$) db 0
