# Shows the picture $1, a path or an https address, behind the windows of the desktop. Says on standard error why not.
set -eu
picture=$1
case $picture in
    https://*)
        directory=${XDG_DATA_HOME:-$HOME/.local/share}/backgrounds
        mkdir -p "$directory"
        fetched=$(mktemp "$directory/wallpaper-XXXXXX")
        if ! curl -fsSL --proto =https --max-filesize 52428800 --max-time 60 -o "$fetched" -- "$picture"; then
            rm -f "$fetched"
            exit 1
        fi
        picture=$fetched
        ;;
esac
if ! [ -f "$picture" ] || ! [ -r "$picture" ]; then
    echo "$picture is no file that the desktop's user can read" >&2
    exit 1
fi
case $(head -c 12 -- "$picture" | od -An -v -tx1 | tr -d ' \n') in
    89504e47* | ffd8ff* | 47494638* | 424d* | 52494646????????57454250 | 3c*) ;;
    *)
        echo "$1 is no picture: PNG, JPEG, GIF, BMP, WebP or SVG" >&2
        exit 1
        ;;
esac
shown=$(xfconf-query -c xfce4-desktop -l | grep '/last-image$') || {
    echo "the desktop shows no wallpaper" >&2
    exit 1
}
for property in $shown; do
    xfconf-query -c xfce4-desktop -p "$property" -s "$picture"
done
