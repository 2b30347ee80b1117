mkdir -m 0700 folder/private
echo secret > folder/private/file
chmod 0600 folder/private/file
chmod 0755 one
ln -s inner folder/link
ln -s /outside folder/absolute
mkdir folder/empty
