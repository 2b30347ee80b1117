mkdir in in/folder
echo file > in/file
echo deep > in/folder/deep
chmod 640 in/file
ln -s file in/link
ln in/file in/hard
tar -C in --owner=3 --group=4 --sort=name --mtime=@1700000000 -cf plain.tar .
gzip -nk plain.tar && mv plain.tar.gz packed.tar.gz
bzip2 -k plain.tar && mv plain.tar.bz2 packed.tar.bz2
xz -k plain.tar && mv plain.tar.xz packed.tar.xz
rm -r in
echo nothing > not-an-archive.tar.gz
